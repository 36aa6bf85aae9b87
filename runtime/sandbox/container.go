package sandbox

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// State is where a container stands. It only moves forward.
type State int

const (
	Creating State = iota // the VM boots or the guest makes it; Kill cancels
	Created               // its process waits for Start
	Running
	Stopped // exited, its output handed over; only Delete is left
	Deleted
)

func (s State) String() string {
	switch s {
	case Creating:
		return "creating"
	case Created:
		return "created"
	case Running:
		return "running"
	case Stopped:
		return "stopped"
	case Deleted:
		return "deleted"
	}
	return fmt.Sprintf("state %d", int(s))
}

// Exit is how a process ended.
type Exit struct {
	Status int // as a shell has it: 128 plus the signal's number
	At     time.Time
}

// Info describes a container to those who ask.
type Info struct {
	ID, Bundle string
	State      State
	Pid        int // QEMU's, on the host
	Streams    stdio.Paths
	Exit       Exit // set once State is Stopped
}

// container is one container of the VM. Its mutex guards the fields below it
// and is never held over a call that waits.
type container struct {
	id, bundle string
	serial     int    // names its disks
	dir        string // own directory below the sandbox's
	streams    stdio.Paths
	disks      []attached // written by create only
	inGuest    bool       // the agent has the container, written by create only
	abandon    context.CancelFunc

	exited chan struct{} // closed when state becomes Stopped
	gone   chan struct{} // closed when the container is taken apart

	mu       sync.Mutex
	state    State
	io       *stdio.IO // nil until Create has opened the streams
	starting bool      // Start is under way: its event goes out before an exit's
	deleting bool      // Delete is under way
	pending  *Exit     // an exit that waits for Start
	exit     Exit
}

func newContainer(id, bundle string, streams stdio.Paths, abandon context.CancelFunc) *container {
	return &container{id: id, bundle: bundle, streams: streams, abandon: abandon, exited: make(chan struct{}), gone: make(chan struct{})}
}

// illegal is the error for an operation that the state does not allow.
func (c *container) illegal(want State) error {
	return fmt.Errorf("container %s is %s, not %s: %w", c.id, c.state, want, errdefs.ErrFailedPrecondition)
}

func (c *container) created() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = Created
}

// beginStart claims the transition from Created to Running.
func (c *container) beginStart() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != Created || c.starting {
		return c.illegal(Created)
	}
	c.starting = true
	return nil
}

// endStart completes it. started is called under the lock, before any exit is
// seen, and must not wait; it is not called if the start failed.
func (c *container) endStart(ok bool, started func(), exited func(Exit)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = false
	if ok {
		if c.state == Created {
			c.state = Running
		}
		started()
	}
	if c.pending != nil {
		exit := *c.pending
		c.pending = nil
		c.stop(exit, exited)
	}
}

// ended records the exit, once: later calls change nothing. exited is called
// under the lock and must not wait.
func (c *container) ended(exit Exit, exited func(Exit)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state == Stopped || c.state == Deleted || c.pending != nil:
	case c.starting:
		c.pending = &exit
	default:
		c.stop(exit, exited)
	}
}

func (c *container) stop(exit Exit, exited func(Exit)) {
	c.state, c.exit = Stopped, exit
	exited(exit)
	close(c.exited)
}

// giveUp ends a creation and waits until nothing of it is left.
func (c *container) giveUp(ctx context.Context) error {
	c.abandon()
	select {
	case <-c.gone:
		return fmt.Errorf("container %s was not created: %w", c.id, errdefs.ErrNotFound)
	case <-ctx.Done():
		return fmt.Errorf("give up the creation of container %s: %w", c.id, ctx.Err())
	}
}

// beginDelete claims the deletion of a container that has stopped.
func (c *container) beginDelete() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleting || c.state == Deleted {
		return fmt.Errorf("container %s is being deleted: %w", c.id, errdefs.ErrNotFound)
	}
	if c.state != Stopped {
		return c.illegal(Stopped)
	}
	c.deleting = true
	return nil
}

func (c *container) endDelete() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = Deleted
}

func (c *container) setStdio(s *stdio.IO) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.io = s
}

func (c *container) stdio() *stdio.IO {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.io
}

func (c *container) removeDir() error { return os.RemoveAll(c.dir) }

func (c *container) current() (State, Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.exit
}
