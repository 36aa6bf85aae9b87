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

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/hugepage"
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
	pages   hugepage.Reservation

	ooms *oomQueue      // the guest's
	huge *hugepage.Pool // the guest's
	oom  *oomWatch      // nil for a cgroup that does not count memory
	// changing holds a token while nobody changes the cgroup: pause, resume and
	// update read it before they write it.
	changing chan struct{}
	ownNet   bool // the container has a network of its own

	mu       sync.Mutex
	state    State
	execs    map[string]*process
	starting map[string]chan struct{} // execs on their way, each closed when it is among the others or has failed
	finished []string                 // ids of execs that ended, oldest first
	oomKills uint64                   // of which the host is told
}

func newContainer(id string, ooms *oomQueue) *Container {
	c := &Container{
		id: id, state: Creating, ooms: ooms, changing: make(chan struct{}, 1),
		execs: map[string]*process{}, starting: map[string]chan struct{}{},
	}
	c.changing <- struct{}{}
	return c
}

// Copies is where the host's copies of files go, below the base directory: a
// directory for each container, named by its id, which ends with the container.
const Copies = "shared/containers"

// removeCopies removes what the host has copied for a container. Links are not
// followed, and nothing is mounted there outside of containers.
func removeCopies(base, id string) error { return os.RemoveAll(filepath.Join(base, Copies, id)) }

// create mounts the root filesystem and starts the first process, which then
// waits for start. On an error nothing is left of either, nor of the copies.
func (c *Container) create(ctx context.Context, dirs Dirs, storages []*pb.Storage, devices []*pb.Device, wire *pb.Spec, system storage.System) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, removeCopies(dirs.Base, c.id))
		}
	}()
	plan, err := storage.Plan(dirs.Base, c.id, storages)
	if err != nil {
		return err
	}
	spec, err := toSpec(wire, c.id, storage.RootfsPath(dirs.Base, c.id))
	if err != nil {
		return err
	}
	if err := giveDisks(ctx, spec, devices, system); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := setGuestSysctls("/proc/sys", spec); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := c.reservePages(spec); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.pages.Release())
		}
	}()
	c.ownNet = hasNamespace(spec, specs.NetworkNamespace)
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
		err = c.init.start(c.lib, func(int) {
			c.lookForOOM()
			c.stopped()
			c.endRest()
		})
	}
	if err == nil {
		err = c.watchOOM()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("container %s: %w", c.id, err), c.destroy())
	}
	return nil
}

// reservePages reserves the huge pages that the container may use.
func (c *Container) reservePages(spec *specs.Spec) (err error) {
	if spec.Linux != nil && spec.Linux.Resources != nil {
		c.pages, err = c.huge.Reserve(spec.Linux.Resources.HugepageLimits)
	}
	return err
}

// endRest kills what the first process has left behind. In a pid namespace of the
// container's own nothing is: there they all die with it (pid_namespaces(7)).
func (c *Container) endRest() {
	// The directory is gone if the container is being removed meanwhile.
	_ = os.WriteFile(filepath.Join(c.cgroup, "cgroup.kill"), []byte("1"), 0)
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
	if p := c.execs[exec]; p != nil {
		return p, nil
	}
	if _, starting := c.starting[exec]; starting {
		return nil, fmt.Errorf("exec %s in container %s is being started: %w", exec, c.id, errdefs.ErrFailedPrecondition)
	}
	return nil, fmt.Errorf("exec %.140q in container %s: %w", exec, c.id, errdefs.ErrNotFound)
}

// remove takes down a container whose first process has ended.
func (c *Container) remove(ctx context.Context, dirs Dirs) (err error) {
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
	if err := removeCopies(dirs.Base, c.id); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	if err := c.destroy(); err != nil {
		return err
	}
	c.oom.Close()
	c.ooms.drop(c.id)
	c.init.closeStreams()
	return errors.Join(c.pages.Release(), c.mounted.Unmount())
}
