package sandbox

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// container is one container of the VM. Its mutex guards the fields below it,
// and those of its processes, and is never held over a call that waits.
type container struct {
	id, bundle string
	serial     int        // names its disks
	dir        string     // own directory below the sandbox's
	disks      []attached // written by its creation only
	inGuest    bool       // the agent has the container, written by create and dismantle only
	messages   []message  // written by create only, before the process starts
	published  []*published
	abandon    context.CancelFunc

	// Written before it is admitted:
	hooks       guestspec.HostHooks
	annotations map[string]string
	infra       bool     // it stands for the pod
	virtual     *virtual // nil for a process that runs in the guest

	init *process      // its state is the container's
	gone chan struct{} // closed when the container is taken apart

	mu     sync.Mutex
	execs  map[string]*process
	ending bool // its own process has ended: no exec starts any more
	frozen bool // Pause or Resume is under way
	oom    oomCount
	limits *pb.LinuxResources         // what it may use, as it was created or updated last; never changed
	stats  *pb.StatsContainerResponse // the last that was asked for
}

func newContainer(id, bundle string, streams stdio.Paths, abandon context.CancelFunc) *container {
	c := &container{id: id, bundle: bundle, abandon: abandon, gone: make(chan struct{}), execs: map[string]*process{}}
	c.init = newProcess(c, "", streams)
	return c
}

// created ends the creation, unless it was given up before. tell is called under
// the lock and must not wait.
func (c *container) created(ctx context.Context, tell func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	tell()
	c.init.state = Created
	return nil
}

// process returns the container's own for "".
func (c *container) process(exec string) (*process, error) {
	if exec == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.execs[exec]
	if !ok {
		return nil, fmt.Errorf("exec %s of container %s: %w", exec, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

// takesExec says whether an exec can be added, or started, in a container that
// is at least in the state from; c.mu is held.
func (c *container) takesExec(from State) error {
	state := c.init.state
	if c.ending && state != Deleted {
		state = Stopped
	}
	if state != Running && (from == Running || state != Created) {
		return fmt.Errorf("container %s is %s and an exec needs it %s: %w", c.id, state, from, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// add takes an exec in. added is called under the lock and must not wait.
func (c *container) add(exec string, spec *pb.Process, streams stdio.Paths, added func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.takesExec(Created); err != nil {
		return err
	}
	if _, ok := c.execs[exec]; ok {
		return fmt.Errorf("exec %s of container %s: %w", exec, c.id, errdefs.ErrAlreadyExists)
	}
	p := newProcess(c, exec, streams)
	p.state, p.spec = Created, spec
	c.execs[exec] = p
	added()
	return nil
}

// end says that the container's own process has ended, and returns the execs
// that run or are being started. No other starts from then on.
func (c *container) end() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ending = true
	var left []*process
	for _, p := range c.execs {
		if p.starting || p.state == Running {
			left = append(left, p)
		}
	}
	return left
}

func (c *container) isEnding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending
}

// abandonExecs ends the life of execs that were not started: those who wait for
// them return.
func (c *container) abandonExecs() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ending = true
	for _, p := range c.execs {
		if p.state == Created && !p.starting {
			p.never(statusNever)
		}
	}
}

// giveUp ends a creation and says whether there was one to end: under the lock, so
// that the container is not created behind it.
func (c *container) giveUp() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init.state != Creating {
		return false
	}
	c.abandon()
	return true
}

func (c *container) removeDir() error { return os.RemoveAll(c.dir) }

// all are the container's processes, its own one last.
func (c *container) all() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*process
	for _, p := range c.execs {
		all = append(all, p)
	}
	return append(all, c.init)
}
