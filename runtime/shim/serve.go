package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/erofsvm/erofsvm/runtime/task"
)

const (
	// stopDeadline bounds the end of the process: calls that are answered,
	// events that go out, a VM that is ended.
	stopDeadline = 15 * time.Second

	// hangUpDeadline bounds the wait for containerd to hang up once it has the
	// answer to the call that ends the shim; it does so at once.
	hangUpDeadline = 500 * time.Millisecond
)

// serve answers containerd's calls until it asks for the end, or a signal does.
func serve(inv invocation) error {
	debug.SetGCPercent(gcPercent)
	logs, err := openLog("log")
	if err != nil {
		return err
	}
	defer logs.Close()
	log.L.Logger.SetOutput(logs)
	if err := log.SetFormat(log.TextFormat); err != nil {
		return err
	}
	if inv.debug {
		if err := log.SetLevel(log.DebugLevel.String()); err != nil {
			return err
		}
	}
	logger := log.L.WithFields(log.Fields{"runtime": Name, "namespace": inv.namespace, "id": inv.id})
	ctx := log.WithLogger(context.Background(), logger)

	file := os.NewFile(listenerFD, "socket")
	listener, err := net.FileListener(file)
	file.Close()
	if err != nil {
		return fmt.Errorf("inherited socket (start the shim with the action start): %w", err)
	}
	clients := &conns{}
	thrift := newThrift(logger)
	defer thrift.stop()
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(clients), ttrpc.WithUnaryServerInterceptor(thrift.watch))
	if err != nil {
		return fmt.Errorf("ttrpc server: %w", err)
	}
	end := make(chan struct{})
	var once sync.Once
	publisher := newPublisher(os.Getenv(ttrpcAddressEnv), inv.namespace, logger)
	started, err := readOptions(".")
	if err != nil {
		return err
	}
	service := task.New(inv.namespace, logger, started, publisher.Publish, func() { once.Do(func() { close(end) }) })
	service.Register(server)

	if began, err := strconv.ParseInt(os.Getenv(beganEnv), 10, 64); err == nil {
		service.Launched(time.Unix(0, began), time.Now())
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	err = waitForEnd(logger, end, served)

	ctx, cancel := context.WithTimeout(ctx, stopDeadline)
	defer cancel()
	os.Remove(listener.Addr().String()) // the bundle that names it may be gone
	return errors.Join(err, service.Close(ctx), shutdown(ctx, server, clients), publisher.Close(ctx))
}

// waitForEnd returns when the shim is to end: nil if that was asked for.
func waitForEnd(logger *log.Entry, end <-chan struct{}, served <-chan error) error {
	signals := make(chan os.Signal, 8)
	// SIGPIPE is caught so that a log or a stream whose reader is gone gives an
	// error and not the end of the process.
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGPIPE)
	defer signal.Stop(signals)
	for {
		select {
		case <-end:
			return nil
		case err := <-served:
			return fmt.Errorf("serve: %w", err)
		case s := <-signals:
			switch s {
			case syscall.SIGTERM, syscall.SIGINT:
				logger.Infof("ending on signal %s", s)
				return nil
			case syscall.SIGUSR1:
				dumpStacks(logger)
			}
		}
	}
}

// shutdown lets the calls under way be answered, the one that asked for it among
// them.
func shutdown(ctx context.Context, server *ttrpc.Server, clients *conns) error {
	answered, cancel := context.WithTimeout(ctx, hangUpDeadline)
	clients.wait(answered)
	cancel()
	if err := server.Shutdown(ctx); err != nil {
		return fmt.Errorf("end the ttrpc server: %w", err)
	}
	return nil
}

func dumpStacks(logger *log.Entry) {
	buf := make([]byte, 1<<20)
	logger.Infof("goroutines:\n%s", buf[:runtime.Stack(buf, true)])
}
