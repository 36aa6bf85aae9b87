package container

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// State is where a container stands in its life:
//
//	creating → created → starting → running → stopped → removing
//
// and while it is running
//
//	running → pausing → paused → resuming → running
//
// with these ways back and short cuts: a start that fails leads from starting
// to created, a pause from pausing to running, a resume from resuming to paused;
// a process that ends leads from any state between created and stopped to
// stopped; a removal that fails leads from removing to stopped.
type State string

// The states of a container. Those in -ing belong to the one call that is under
// way and exclude any other change.
const (
	Creating State = "creating"
	Created  State = "created"
	Starting State = "starting"
	Running  State = "running"
	Pausing  State = "pausing"
	Paused   State = "paused"
	Resuming State = "resuming"
	Stopped  State = "stopped"
	Removing State = "removing"
)

// transitions lists where each state may lead.
var transitions = map[State][]State{
	Creating: {Created},
	Created:  {Starting, Stopped},
	Starting: {Running, Created, Stopped},
	Running:  {Pausing, Stopped},
	Pausing:  {Paused, Running, Stopped},
	Paused:   {Resuming, Stopped},
	Resuming: {Running, Paused, Stopped},
	Stopped:  {Removing},
	Removing: {Stopped},
}

// to moves the container, or refuses in the name of both states.
func (c *Container) to(next State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(transitions[c.state], next) {
		return fmt.Errorf("container %s is %s and cannot become %s: %w", c.id, c.state, next, errdefs.ErrFailedPrecondition)
	}
	c.state = next
	return nil
}

// toFrom moves the container only if it still is where the caller left it: its
// process may have ended meanwhile, and stopped stays stopped.
func (c *Container) toFrom(here, next State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == here {
		c.state = next
	}
}

// stopped records that the first process has ended.
func (c *Container) stopped() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = Stopped
}

// State returns the state of the moment.
func (c *Container) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}
