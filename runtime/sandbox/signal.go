package sandbox

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Kill sends a signal to a process, or with all to every process of a container,
// whoever started it. SIGKILL to a container reaches all of them anyway. A guest
// whose agent does not answer to SIGKILL is ended as a whole. A container that is
// being created is given up instead.
func (s *Sandbox) Kill(ctx context.Context, id, exec string, sig syscall.Signal, all bool) error {
	p, m, err := s.find(id, exec)
	if err != nil {
		return err
	}
	if exec == "" && p.c.giveUp() {
		return nil
	}
	switch state, _ := p.current(); {
	case state == Created && exec != "":
		return fmt.Errorf("%s: process not created: %w", p, errdefs.ErrFailedPrecondition)
	case state == Stopped, state == Deleted:
		return fmt.Errorf("%s: process already finished: %w", p, errdefs.ErrNotFound)
	}
	if all && exec == "" {
		err = p.c.runner(m).SignalAll(ctx, id, sig)
	} else {
		err = p.c.runner(m).SignalProcess(ctx, p.ref(), sig)
	}
	if err != nil && sig == syscall.SIGKILL && ctx.Err() == nil && unanswered(err) {
		// Whoever sends SIGKILL wants an end. A guest that does not answer
		// gets it as a whole.
		m.abort(err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal %s: %w", p, err)
	}
	return nil
}

// unanswered says whether a call failed because the agent gave no answer.
func unanswered(err error) bool {
	return errors.Is(err, agentclient.ErrConnection) || errors.Is(err, context.DeadlineExceeded)
}

// CloseStdin tells a process that no more input comes, once what was written
// before is read. For an exec that is not started it counts from its start.
func (s *Sandbox) CloseStdin(id, exec string) error {
	p, _, err := s.find(id, exec)
	if err != nil {
		return err
	}
	p.closeStdin()
	return nil
}

// Resize sets the size of a process's terminal, in characters. An exec that is
// not started has it from its first byte. A process without a terminal has
// nothing to set, which is no error, as it is none for runc's shim.
func (s *Sandbox) Resize(ctx context.Context, id, exec string, rows, columns uint16) error {
	p, m, err := s.findCreated(id, exec)
	if err != nil {
		return err
	}
	if !p.streams.Terminal {
		return nil
	}
	p.c.mu.Lock()
	state := p.state
	if state == Created && p.spec != nil && !p.starting {
		p.spec.ConsoleSize = &pb.Box{Height: uint32(rows), Width: uint32(columns)}
		p.c.mu.Unlock()
		return nil
	}
	p.c.mu.Unlock()
	if state == Stopped || state == Deleted {
		return fmt.Errorf("resize the terminal of %s: it is %s, not %s: %w", p, state, Running, errdefs.ErrFailedPrecondition)
	}
	if err := p.c.runner(m).TtyWinResize(ctx, p.ref(), rows, columns); err != nil {
		return fmt.Errorf("resize the terminal of %s: %w", p, err)
	}
	return nil
}
