package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// Pause freezes all processes of a container that runs.
func (s *Sandbox) Pause(ctx context.Context, id string) error {
	return s.freeze(ctx, id, Running, Paused)
}

// Resume lets the processes of a paused container run again.
func (s *Sandbox) Resume(ctx context.Context, id string) error {
	return s.freeze(ctx, id, Paused, Running)
}

func (s *Sandbox) freeze(ctx context.Context, id string, from, to State) error {
	p, m, err := s.find(id, "")
	if err != nil {
		return err
	}
	if err := p.c.beginFreeze(from); err != nil {
		return err
	}
	told := func() { s.sink.Paused(id) }
	do := p.c.runner(m).PauseContainer
	if to == Running {
		told = func() { s.sink.Resumed(id) }
		do = p.c.runner(m).ResumeContainer
	}
	err = do(ctx, id)
	if ended := p.c.endFreeze(err == nil, from, to, told); err == nil {
		err = ended
	}
	if err != nil {
		return fmt.Errorf("%s is to be %s: %w", p, to, err)
	}
	return nil
}

// beginFreeze claims the transition between Running and Paused.
func (c *container) beginFreeze(from State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen {
		return fmt.Errorf("container %s is being paused or resumed: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if c.init.state != from {
		return c.init.illegal(from)
	}
	c.frozen = true
	return nil
}

// endFreeze completes it. told is called under the lock, and not if the
// container has stopped meanwhile: that was told already.
func (c *container) endFreeze(ok bool, from, to State, told func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen = false
	if !ok {
		return nil
	}
	if c.init.state != from {
		return c.init.illegal(from)
	}
	c.init.state = to
	told()
	return nil
}
