package hostgroup

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups/systemd"
)

// The scopes are asked of systemd here, over a connection that ends with the call,
// and not by the manager of opencontainers/cgroups: that keeps two connections for
// as long as the process lives, of which a bus has 256 for all of root's, and waits
// half a minute whatever the context says.

// startScope has systemd make the scope, with a process in it.
func startScope(ctx context.Context, n name, pid int) error {
	if !systemd.IsRunningSystemd() {
		return fmt.Errorf("the name is one of systemd's, which does not run on this host: %w", errdefs.ErrFailedPrecondition)
	}
	return withSystemd(ctx, func(conn *dbus.Conn) error {
		properties := []dbus.Property{
			dbus.PropDescription("virtual machine of erofsvm"),
			dbus.PropSlice(n.slice),
			dbus.PropPids(uint32(pid)),
			property("Delegate", true), // so that systemd leaves it alone
			property("DefaultDependencies", false),
			property("CPUAccounting", true),
			property("MemoryAccounting", true),
			property("TasksAccounting", true),
		}
		start := func() error {
			return job(ctx, func(done chan<- string) (int, error) {
				return conn.StartTransientUnitContext(ctx, n.unit, "fail", properties, done)
			})
		}
		err := start()
		if isDBus(err, "org.freedesktop.systemd1.UnitExists") {
			// One that has failed is kept until somebody has heard of it.
			if err = conn.ResetFailedUnitContext(ctx, n.unit); err == nil {
				err = start()
			}
		}
		return err
	})
}

// stopScope has systemd end a scope, with what is still in it. Mostly it has ended by
// itself, with its last process. Without systemd there is none.
func stopScope(ctx context.Context, n name) error {
	if !systemd.IsRunningSystemd() {
		return nil
	}
	return withSystemd(ctx, func(conn *dbus.Conn) error {
		err := job(ctx, func(done chan<- string) (int, error) {
			return conn.StopUnitContext(ctx, n.unit, "replace", done)
		})
		if isDBus(err, "org.freedesktop.systemd1.NoSuchUnit") {
			return nil
		}
		return err
	})
}

func withSystemd(ctx context.Context, do func(*dbus.Conn) error) error {
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	if err := do(conn); err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	return nil
}

// job waits for what a call has begun.
func job(ctx context.Context, begin func(done chan<- string) (int, error)) error {
	done := make(chan string, 1)
	if _, err := begin(done); err != nil {
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("the job ended as %q", result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the job: %w", context.Cause(ctx))
	}
}

func property(key string, value any) dbus.Property {
	return dbus.Property{Name: key, Value: godbus.MakeVariant(value)}
}

func isDBus(err error, class string) bool {
	e, ok := errors.AsType[godbus.Error](err)
	return ok && e.Name == class
}
