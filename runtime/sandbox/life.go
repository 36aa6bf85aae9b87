package sandbox

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Start lets the process of a created container run, or starts an exec that was
// added to one.
func (s *Sandbox) Start(ctx context.Context, id, exec string) (pid int, err error) {
	p, m, err := s.find(id, exec)
	if err != nil {
		return 0, err
	}
	if err := p.beginStart(); err != nil {
		return 0, err
	}
	pid = m.pid()
	if exec != "" {
		return pid, s.startExec(ctx, p, m)
	}
	begun := time.Now()
	m.trace.starting(begun)
	// ctr run --cni makes the network between Create and here.
	if err = m.net.sync(ctx, m); err == nil {
		err = p.c.runner(m).StartContainer(ctx, id)
	}
	m.trace.phase("container start", begun)
	m.trace.started(m.dir, id, err)
	p.endStart(err == nil, func() { s.sink.Started(id, pid) }, s.exitOf(p, m))
	if err != nil {
		s.reap(ctx, p, m)
		return 0, fmt.Errorf("start %s: %w", p, err)
	}
	if err := s.runHooks(ctx, p.c, m, p.c.hooks.Poststart, specs.StateRunning); err != nil {
		s.log.WithError(err).Warnf("poststart of %s", p)
	}
	return pid, nil
}

// reap makes sure that a process of which nobody wants to know any more comes to
// its end.
func (s *Sandbox) reap(ctx context.Context, p *process, m *machine) {
	ctx = context.WithoutCancel(ctx)
	err := p.c.runner(m).SignalProcess(ctx, p.ref(), syscall.SIGKILL)
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		s.log.WithError(err).Warnf("kill %s", p)
	}
}

// Wait waits until a process has stopped and its output is handed over. For a
// container whose creation fails meanwhile the error is of class
// errdefs.ErrNotFound.
func (s *Sandbox) Wait(ctx context.Context, id, exec string) (Exit, error) {
	p, _, err := s.find(id, exec)
	if err != nil {
		return Exit{}, err
	}
	return s.wait(ctx, p)
}

func (s *Sandbox) wait(ctx context.Context, p *process) (Exit, error) {
	select {
	case <-p.exited:
	case <-p.c.gone:
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for %s: %w", p, ctx.Err())
	}
	state, exit := p.current()
	if state != Stopped && state != Deleted {
		return Exit{}, fmt.Errorf("%s was not created: %w", p, errdefs.ErrNotFound)
	}
	return exit, nil
}

// Info describes a process.
func (s *Sandbox) Info(id, exec string) (Info, error) {
	p, m, err := s.find(id, exec)
	if err != nil {
		return Info{}, err
	}
	info := p.info(m)
	info.State, info.Exit = p.seen()
	return info, nil
}

func (p *process) info(m *machine) Info {
	return Info{ID: p.c.id, Bundle: p.c.bundle, Exec: p.exec, Pid: m.pid(), Streams: p.streams}
}

// Delete removes a container that has stopped, or was never started, and the
// VM with the last one, or with the one that stands for the pod. One that is being created, by a client that has gone
// away, is given up: the error is then of class errdefs.ErrNotFound. Of an exec
// that has stopped, or was never started, it removes what is known.
func (s *Sandbox) Delete(ctx context.Context, id, exec string) (Info, error) {
	return s.DeleteFor(ctx, id, exec, nil)
}

// DeleteFor is Delete for somebody who may go away meanwhile: unheard, if set, says
// whether they have. A container stays for who asks next then, as one that has
// stopped, and the error is of class errdefs.ErrUnavailable.
func (s *Sandbox) DeleteFor(ctx context.Context, id, exec string, unheard func() bool) (Info, error) {
	p, m, err := s.find(id, exec)
	if err != nil {
		return Info{}, err
	}
	if exec == "" {
		if err := s.endUnstarted(ctx, p, m); err != nil {
			return Info{}, err
		}
	}
	if err := p.beginDelete(); err != nil {
		return Info{}, err
	}
	info := p.info(m)
	info.State = Deleted
	_, info.Exit = p.current()
	if exec != "" {
		p.closeStdio()
		p.endDelete()
		return info, nil
	}
	if !s.dismantle(ctx, p.c, m, unheard) {
		p.keep()
		return Info{}, fmt.Errorf("delete %s: whoever asked is gone: %w", p, errdefs.ErrUnavailable)
	}
	p.endDelete()
	if err := s.runHooks(ctx, p.c, m, p.c.hooks.Poststop, specs.StateStopped); err != nil {
		s.log.WithError(err).Warnf("poststop of %s", p)
	}
	s.sink.Deleted(id, info.Pid, info.Exit)
	return info, nil
}

// endUnstarted brings a container to its end that is being created, or waits to be
// started.
func (s *Sandbox) endUnstarted(ctx context.Context, p *process, m *machine) error {
	if p.c.giveUp() {
		_, err := s.wait(ctx, p)
		return err
	}
	if state, _ := p.current(); state == Created {
		return s.kill(ctx, p, m)
	}
	return nil
}

func (s *Sandbox) kill(ctx context.Context, p *process, m *machine) error {
	s.reap(ctx, p, m)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Stop.Std())
	defer cancel()
	if _, err := s.wait(ctx, p); err != nil {
		return fmt.Errorf("%s does not end: %w", p, err)
	}
	return nil
}
