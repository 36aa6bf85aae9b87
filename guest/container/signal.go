package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs2"
	"golang.org/x/sys/unix"
)

// signal sends a signal to a process. SIGKILL to the first one ends all of the
// container, whatever processes it has made and wherever they hide.
func (c *Container) signal(exec string, sig unix.Signal) error {
	p, err := c.living(exec)
	if err != nil {
		return err
	}
	if exec == "" && sig == unix.SIGKILL {
		return c.killAll()
	}
	return p.signal(sig)
}

// signalAll sends a signal to every process in the container's cgroup and in
// those below it.
//
// They stand still meanwhile, or one that is born while the others are listed
// would be missed. In a container that is paused they do already, and find the
// signal when they go on.
func (c *Container) signalAll(ctx context.Context, sig unix.Signal) (failure error) {
	if _, err := c.living(""); err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		return c.killAll()
	}
	done, err := c.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	if c.State() != Paused {
		group, err := fs2.NewManager(c.lib.Config().Cgroups, c.cgroup)
		if err != nil {
			return fmt.Errorf("cgroup of container %s: %w", c.id, err)
		}
		// A process that sleeps in the kernel may not freeze in time. That is no
		// reason to signal nobody.
		_ = group.Freeze(cgroups.Frozen)
		defer func() {
			if thaw := group.Freeze(cgroups.Thawed); thaw != nil {
				failure = errors.Join(failure, fmt.Errorf("thaw container %s: %w", c.id, thaw))
			}
		}()
	}
	pids, err := cgroups.GetAllPids(c.cgroup)
	if errors.Is(err, os.ErrNotExist) { // it is being removed
		return fmt.Errorf("the process has ended: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("list the processes of container %s: %w", c.id, err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal process %d of container %s: %w", pid, c.id, err)
		}
	}
	return nil
}

// killAll is one write that kills everything below, forks in progress included
// (Documentation/admin-guide/cgroup-v2.rst, cgroup.kill).
func (c *Container) killAll() error {
	return os.WriteFile(filepath.Join(c.cgroup, "cgroup.kill"), []byte("1"), 0)
}

// living is a process that has not ended.
func (c *Container) living(exec string) (*process, error) {
	p, err := c.process(exec)
	if err == nil && p.hasExited() {
		return nil, fmt.Errorf("the process has ended: %w", errdefs.ErrNotFound)
	}
	return p, err
}
