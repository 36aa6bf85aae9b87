// Package shim is the process containerd-shim-erofsvm-v2 as containerd sees
// it: its flags and actions, the bootstrap reply, the socket it serves, its log
// and the events it publishes.
//
// The package owns the process's signals, its listening socket and the log
// fifo. Main is called once, by main. What the calls on the socket mean is
// runtime/task's business.
package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/erofsvm/erofsvm/runtime/sandbox"
)

const (
	// Name is the runtime's name, as users give it to containerd.
	Name = "io.containerd.erofsvm.v2"
	// Version is that of the shim and of what is built with it.
	Version = "0.1.0"
)

// deleteDeadline is within the 5 s that containerd gives to `delete`
// (core/runtime/v2/shim.go, cleanupTimeout).
const deleteDeadline = 4 * time.Second

// endDeadline bounds the end of a shim that still serves, and leaves deleteDeadline
// the time for the rest.
const endDeadline = 2 * time.Second

// statusUnknown is the exit status of a task whose shim died: 128 + SIGKILL.
const statusUnknown = 137

// invocation is what the command line says (core/runtime/v2/command.go of
// containerd; the same flags since 1.2).
type invocation struct {
	namespace string
	id        string
	address   string // of containerd's gRPC socket
	bundle    string // delete: the bundle, if it is not the working directory
	debug     bool
	version   bool
	info      bool
	action    string // "start", "delete", or empty to serve
	began     time.Time
}

func parse(args []string, errs io.Writer) (invocation, error) {
	inv := invocation{began: time.Now()}
	fs := flag.NewFlagSet(filepath.Base(args[0]), flag.ContinueOnError)
	fs.SetOutput(errs)
	fs.StringVar(&inv.namespace, "namespace", "", "namespace that owns the shim")
	fs.StringVar(&inv.id, "id", "", "id of the task")
	fs.StringVar(&inv.address, "address", "", "address of containerd's gRPC socket")
	fs.StringVar(&inv.bundle, "bundle", "", "bundle, if it is not the working directory")
	fs.BoolVar(&inv.debug, "debug", false, "log more")
	fs.BoolVar(&inv.version, "v", false, "print the version and exit")
	fs.BoolVar(&inv.version, "version", false, "print the version and exit")
	fs.BoolVar(&inv.info, "info", false, "print what the runtime can do, as containerd.types.RuntimeInfo, and exit")
	// Given by containerd and of no use here.
	fs.String("publish-binary", "", "not used")
	fs.String("socket", "", "not used")
	fs.String("debug-socket", "", "not used")
	if err := fs.Parse(args[1:]); err != nil {
		return inv, err
	}
	inv.action = fs.Arg(0)
	return inv, nil
}

// Main does what the command line asks for and returns the exit code.
func Main(args []string, in io.Reader, out, errs io.Writer) int {
	if sandbox.BuildsTemplate(args) {
		return sandbox.BuildTemplate(in, errs)
	}
	inv, err := parse(args, errs)
	if err != nil {
		return 2
	}
	if err := inv.run(in, out); err != nil {
		fmt.Fprintf(errs, "%s: %v\n", Name, err)
		return 1
	}
	return 0
}

func (inv invocation) run(in io.Reader, out io.Writer) error {
	switch {
	case inv.version:
		_, err := fmt.Fprintf(out, "containerd-shim-erofsvm-v2:\n  Version:    %s\n  Go version: %s\n", Version, runtime.Version())
		return err
	case inv.info:
		return writeInfo(out)
	case inv.namespace == "":
		return fmt.Errorf("-namespace is missing")
	case inv.id == "":
		return fmt.Errorf("-id is missing")
	}
	switch inv.action {
	case "start":
		return start(inv, in, out)
	case "delete":
		return remove(inv, out)
	case "":
		return serve(inv)
	}
	return fmt.Errorf("unknown action %q: start, delete, or none to serve", inv.action)
}

// remove is what containerd calls when a shim is gone, or is taken for gone, and
// after an ordinary delete too. It needs nothing but the bundle, touches nothing
// that the bundle does not name, and can run twice.
func remove(inv invocation, out io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), deleteDeadline)
	defer cancel()
	bundle := inv.bundle
	if bundle == "" {
		var err error
		if bundle, err = os.Getwd(); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
	}
	socket := socketOf(bundle)
	if socket != "" {
		end(ctx, socket)
	}
	pid, err := sandbox.Cleanup(ctx, bundle)
	if err != nil {
		return fmt.Errorf("delete %s: %w", inv.id, err)
	}
	if socket != "" {
		os.Remove(socket)
	}
	reply, err := proto.Marshal(&task.DeleteResponse{
		Pid: uint32(pid), ExitStatus: statusUnknown, ExitedAt: timestamppb.Now(),
	})
	if err != nil {
		return err
	}
	_, err = out.Write(reply)
	return err
}

// end asks a shim that still serves a bundle of which containerd wants to know no
// more, such as one that was too slow to answer, to end, and waits until it does:
// nobody else will ever ask it. One that cannot be asked is left to its VM's end.
func end(ctx context.Context, socket string) {
	ctx, cancel := context.WithTimeout(ctx, endDeadline)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return
	}
	closed := make(chan struct{})
	client := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(closed) }))
	defer client.Close()
	if _, err := task.NewTTRPCTaskClient(client).Shutdown(ctx, &task.ShutdownRequest{Now: true}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		return
	}
	select {
	case <-closed: // its VM has ended by then
	case <-ctx.Done():
	}
}
