// Package agent is the life of PID 1 in the guest, from the first mount to the
// last orphan.
//
// Run owns the process: it is called once, on the main goroutine, which must be
// locked to the main thread, and returns only when the guest cannot work. The
// agent keeps no identity: what belongs to a pod comes by calls, so that a guest
// saved after Run has begun to listen serves any pod.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/agentlog"
	"github.com/erofsvm/erofsvm/guest/boot"
	"github.com/erofsvm/erofsvm/guest/container"
	"github.com/erofsvm/erofsvm/guest/files"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/network"
	"github.com/erofsvm/erofsvm/guest/ports"
	"github.com/erofsvm/erofsvm/guest/server"
	"github.com/erofsvm/erofsvm/guest/storage"
	"github.com/erofsvm/erofsvm/guest/stream"
	"github.com/erofsvm/erofsvm/guest/uevent"
	"github.com/erofsvm/erofsvm/guest/verity"
)

const stateDir = "/run/erofsvm" // libcontainer's records

// Run listens, says so, makes the system, and serves until the guest ends.
//
// Only what a vsock needs comes before listening: a call that arrives early
// waits in the socket's queue, which costs it nothing.
func Run(began time.Time) error {
	modules, err := boot.ReadModules(layout.ModuleList)
	if err != nil {
		return err
	}
	if err := boot.LoadModules(layout.ModuleDir, layout.StageBoot, modules); err != nil {
		return err
	}
	agentPort, err := listen(layout.PortAgent)
	if err != nil {
		return err
	}
	listening := time.Since(began)
	lines := agentlog.New()
	settled := make(chan guest, 1)
	go announce(lines, settled)

	if err := boot.Root(); err != nil {
		return err
	}
	if err := boot.Mounts(); err != nil {
		return err
	}
	console, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open the console: %w", err)
	}
	log := agentlog.Logger(lines, console, slog.LevelInfo)
	logrus.SetOutput(io.Discard) // libcontainer's; its errors are returned as well
	mounted := time.Since(began)

	if err := os.MkdirAll(storage.Base, 0o755); err != nil {
		return err
	}
	ready := make(chan struct{})
	demand := boot.NewDemand(layout.ModuleDir, modules)
	system := storageSystem(demand, log)
	containers := container.NewManager(container.Dirs{Base: storage.Base, State: stateDir}, system)
	copies := filepath.Join(storage.Base, container.Copies)
	sockets := files.NewSockets(copies)
	containers.OnRemoval(sockets.Close)
	config := server.Config{
		Containers: containers,
		Sandbox:    &server.Sandbox{Base: storage.Base, System: system},
		Network:    network.New(demand),
		Log:        log,
		Ready:      ready,
	}
	calls, err := server.New(config)
	if err != nil {
		return err
	}
	// Before the first call, whose caller may want the streams next.
	streamPort, err := listen(layout.PortStreams)
	if err != nil {
		return err
	}
	filesPort, err := listen(layout.PortFiles)
	if err != nil {
		return err
	}
	portsPort, err := listen(layout.PortPorts)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(context.Background())
	go func() { stop(fmt.Errorf("serve streams: %w", stream.Serve(ctx, streamPort, containers.Stream, log))) }()
	go func() {
		stop(fmt.Errorf("serve files: %w", files.Serve(ctx, filesPort, containers.Root, sockets, files.Copies(copies), log)))
	}()
	go func() { stop(fmt.Errorf("serve ports: %w", ports.Serve(ctx, portsPort, log))) }()
	go func() { stop(fmt.Errorf("serve calls: %w", server.Serve(ctx, calls, agentPort))) }()
	go serveLog(ctx, lines, log)
	go func() {
		finishBoot(modules, log)
		close(ready)
		log.Info("agent serves", "listening_after", listening, "mounted_after", mounted, "ready_after", time.Since(began), "uptime", uptime())
		if err := demand.Load(ctx, layout.StageMemory); err != nil {
			log.Warn("memory that the guest frees stays the guest's", "error", err.Error())
		}
		settled <- guest{console, demand, config}
	}()

	boot.ReapOrphans(ctx.Done())
	return context.Cause(ctx)
}

// storageSystem is what mounts of this guest are made with. Layers that turn out
// to be corrupt are named in the log.
func storageSystem(modules *boot.Demand, log *slog.Logger) storage.System {
	devices := verity.New(log)
	return storage.System{
		Disks:   uevent.Finder{Sys: "/sys", Dev: "/dev"},
		Modules: modules,
		Verity: storage.VerityFunc(func(l verity.Layer) (storage.Protected, error) {
			dev, err := devices.Open(l)
			if err != nil {
				return nil, err // and not an interface around a nil Device
			}
			return dev, nil
		}),
	}
}

// finishBoot does what can wait until the agent listens. What fails is said in
// the log and shows again in the call that needs it.
func finishBoot(modules []boot.Module, log *slog.Logger) {
	if err := boot.LoadModules(layout.ModuleDir, layout.StageLate, modules); err != nil {
		log.Error("modules are missing", "error", err.Error())
	}
	if err := boot.Loopback(); err != nil {
		log.Error("no loopback", "error", err.Error())
	}
}

func serveLog(ctx context.Context, lines *agentlog.Log, log *slog.Logger) {
	listener, err := listen(layout.PortLog)
	if err == nil {
		err = lines.Serve(ctx, listener)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		log.Error("the log cannot be read", "error", err.Error())
	}
}

// uptime is the time since the kernel started.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
