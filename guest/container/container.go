// Package container runs containers in the guest by libcontainer: their root
// filesystem, their processes, their streams, their states.
//
// A Manager owns all containers of the guest; its methods may be called from
// any goroutine and at the same time. A lock guards states and maps only: none
// is held while something is mounted, started, awaited, read or written. Each
// process has a goroutine, and a thread, that live as long as it does (see
// process.start). The package never reaps a process that it did not start,
// never touches what lies outside the container's own directory and cgroup, and
// knows nothing of the wire but its messages.
package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	_ "github.com/opencontainers/cgroups/devices" // lets libcontainer set device rules
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
)

// Container is one container of the guest.
type Container struct {
	id string

	// Set before the state leaves creating, and only read afterwards.
	lib     *libcontainer.Container
	mounted *storage.Mounted
	cgroup  string // directory in the unified hierarchy
	init    *process

	mu       sync.Mutex
	state    State
	execs    map[string]*process // nil while it is being started
	finished []string            // ids of execs that ended, oldest first
}

// keepFinished is how many ended execs stay although their status and output
// were fetched, so that a late question still has its answer.
const keepFinished = 64

// create mounts the root filesystem and starts the first process, which then
// waits for start. On an error nothing is left of either.
func (c *Container) create(ctx context.Context, dirs Dirs, plan storage.Rootfs, spec *specs.Spec, system storage.System) (err error) {
	if c.mounted, err = plan.Mount(ctx, dirs.Base, system); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.mounted.Unmount())
		}
	}()

	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: c.id, Spec: spec})
	if err != nil {
		return fmt.Errorf("container %s: %w: %w", c.id, errdefs.ErrInvalidArgument, err)
	}
	c.cgroup = filepath.Join("/sys/fs/cgroup", config.Cgroups.Path)
	if c.lib, err = libcontainer.Create(dirs.State, c.id, config); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if c.init, err = newProcess(toLibcontainer(spec.Process, true), spec.Process.Terminal); err == nil {
		err = c.init.start(c.lib, func(int) { c.stopped() })
	}
	if err != nil {
		return errors.Join(fmt.Errorf("container %s: %w", c.id, err), c.destroy())
	}
	return nil
}

// destroy removes what libcontainer made. It may run hooks, which are processes
// of ours: see process.start for the thread.
func (c *Container) destroy() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := c.lib.Destroy(); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	return nil
}

// start lets the first process go on into the program of the container.
func (c *Container) start() error {
	if err := c.to(Starting); err != nil {
		return err
	}
	if err := c.lib.Exec(); err != nil {
		c.toFrom(Starting, Created)
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	c.toFrom(Starting, Running)
	return nil
}

// exec starts one more process.
func (c *Container) exec(id string, spec *pb.Process) error {
	process, err := toProcess(spec)
	if err != nil {
		return err
	}
	if err := c.reserveExec(id); err != nil {
		return err
	}
	p, err := newProcess(toLibcontainer(process, false), process.Terminal)
	if err == nil {
		err = p.start(c.lib, func(int) { c.execEnded(id) })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		delete(c.execs, id)
		return fmt.Errorf("exec %s in container %s: %w", id, c.id, err)
	}
	c.execs[id] = p
	return nil
}

func (c *Container) reserveExec(id string) error {
	if err := storage.CheckID(id); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != Running {
		return fmt.Errorf("container %s is %s and an exec needs it %s: %w", c.id, c.state, Running, errdefs.ErrFailedPrecondition)
	}
	if _, taken := c.execs[id]; taken {
		return fmt.Errorf("exec %s in container %s: %w", id, c.id, errdefs.ErrAlreadyExists)
	}
	c.forgetFinished()
	c.execs[id] = nil
	return nil
}

func (c *Container) execEnded(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finished = append(c.finished, id)
}

// forgetFinished drops the oldest execs that have nothing more to tell, with
// c.mu held. A probe that runs every second must not fill the guest.
func (c *Container) forgetFinished() {
	kept := c.finished[:0]
	for i, id := range c.finished {
		if p := c.execs[id]; len(c.finished)-i > keepFinished && p != nil && p.fetched() {
			p.closeStreams()
			delete(c.execs, id)
			continue
		}
		kept = append(kept, id)
	}
	c.finished = kept
}

// process returns the process of an exec, or the first one for "".
func (c *Container) process(exec string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == Creating {
		return nil, fmt.Errorf("container %s is %s: %w", c.id, c.state, errdefs.ErrFailedPrecondition)
	}
	if exec == "" {
		return c.init, nil
	}
	p, known := c.execs[exec]
	switch {
	case !known:
		return nil, fmt.Errorf("exec %.140q in container %s: %w", exec, c.id, errdefs.ErrNotFound)
	case p == nil:
		return nil, fmt.Errorf("exec %s in container %s is being started: %w", exec, c.id, errdefs.ErrFailedPrecondition)
	}
	return p, nil
}

// signal sends a signal to a process. SIGKILL to the first one ends all of the
// container, whatever processes it has made and wherever they hide.
func (c *Container) signal(exec string, sig unix.Signal) error {
	p, err := c.process(exec)
	if err != nil {
		return err
	}
	if p.hasExited() {
		return fmt.Errorf("the process has ended: %w", errdefs.ErrNotFound)
	}
	if exec == "" && sig == unix.SIGKILL {
		// One write kills everything below, forks in progress included
		// (Documentation/admin-guide/cgroup-v2.rst, cgroup.kill).
		return os.WriteFile(filepath.Join(c.cgroup, "cgroup.kill"), []byte("1"), 0)
	}
	return p.signal(sig)
}

// remove takes down a container whose first process has ended.
func (c *Container) remove(ctx context.Context) (err error) {
	if err := c.to(Removing); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.toFrom(Removing, Stopped)
		}
	}()
	if err := c.awaitExecs(ctx); err != nil {
		return err
	}
	if err := c.destroy(); err != nil {
		return err
	}
	c.init.closeStreams()
	return c.mounted.Unmount()
}

// awaitExecs waits for the last processes: those in the container's own pid
// namespace die with its first, others are killed here.
func (c *Container) awaitExecs(ctx context.Context) error {
	c.mu.Lock()
	var left []*process
	for _, p := range c.execs {
		if p != nil {
			left = append(left, p)
		}
	}
	c.mu.Unlock()
	for _, p := range left {
		if !p.hasExited() {
			_ = p.signal(unix.SIGKILL)
		}
		if _, err := p.wait(ctx); err != nil {
			return fmt.Errorf("wait for the last process of container %s: %w", c.id, err)
		}
		p.closeStreams()
	}
	return nil
}
