package container

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
)

// keepFinished is how many ended execs stay although their status and output
// were fetched, so that a late question still has its answer.
const keepFinished = 64

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
		err = p.start(c.lib, func(int) {
			c.lookForOOM()
			c.execEnded(id)
		})
	}
	c.execStarted(id, p, err == nil)
	if err != nil {
		return fmt.Errorf("exec %s in container %s: %w", id, c.id, err)
	}
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
	_, starting := c.starting[id]
	before := c.execs[id]
	if starting || before != nil && !before.fetched() {
		return fmt.Errorf("exec %s in container %s: %w", id, c.id, errdefs.ErrAlreadyExists)
	}
	if before != nil { // it has nothing more to tell
		before.closeStreams()
		delete(c.execs, id)
		c.finished = slices.DeleteFunc(c.finished, func(f string) bool { return f == id })
	}
	c.forgetFinished()
	c.starting[id] = make(chan struct{})
	return nil
}

func (c *Container) execStarted(id string, p *process, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok {
		c.execs[id] = p
	}
	close(c.starting[id])
	delete(c.starting, id)
}

func (c *Container) execEnded(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finished = append(c.finished, id)
}

// forgetFinished closes what is open of the execs that have nothing more to
// tell, and drops the oldest of them, with c.mu held. A probe that runs every
// second must not fill the guest.
func (c *Container) forgetFinished() {
	kept := c.finished[:0]
	for i, id := range c.finished {
		p := c.execs[id]
		if p != nil && p.fetched() {
			p.closeStreams()
			if len(c.finished)-i > keepFinished {
				delete(c.execs, id)
				continue
			}
		}
		kept = append(kept, id)
	}
	c.finished = kept
}

// awaitStarting waits for the execs that are on their way.
func (c *Container) awaitStarting(ctx context.Context) error {
	c.mu.Lock()
	var left []chan struct{}
	for _, started := range c.starting {
		left = append(left, started)
	}
	c.mu.Unlock()
	for _, started := range left {
		select {
		case <-started:
		case <-ctx.Done():
			return fmt.Errorf("wait for the start of the execs of container %s: %w", c.id, ctx.Err())
		}
	}
	return nil
}

// awaitExecs waits for the last processes: those in the container's own pid
// namespace die with its first, others are killed here.
func (c *Container) awaitExecs(ctx context.Context) error {
	if err := c.awaitStarting(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	var left []*process
	for _, p := range c.execs {
		left = append(left, p)
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
