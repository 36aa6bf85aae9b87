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
	// ctr run --cni makes the network between Create and here.
	if err = m.net.sync(ctx, m); err == nil {
		err = p.c.runner(m).StartContainer(ctx, id)
	}
	m.trace.phase("container start", begun)
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

// Wait waits until a process has stopped and its output is handed over.
func (s *Sandbox) Wait(ctx context.Context, id, exec string) (Exit, error) {
	p, _, err := s.find(id, exec)
	if err != nil {
		return Exit{}, err
	}
	select {
	case <-p.exited:
		_, exit := p.current()
		return exit, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for %s: %w", p, ctx.Err())
	}
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
	p, m, err := s.find(id, exec)
	if err != nil {
		return Info{}, err
	}
	if exec == "" {
		switch state, _ := p.current(); state {
		case Creating:
			if err := p.c.giveUp(ctx); err != nil {
				return Info{}, err
			}
		case Created:
			if err := s.kill(ctx, p, m); err != nil {
				return Info{}, err
			}
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
	s.dismantle(ctx, p.c, m)
	p.endDelete()
	if err := s.runHooks(ctx, p.c, m, p.c.hooks.Poststop, specs.StateStopped); err != nil {
		s.log.WithError(err).Warnf("poststop of %s", p)
	}
	s.sink.Deleted(id, info.Pid, info.Exit)
	return info, nil
}

func (s *Sandbox) kill(ctx context.Context, p *process, m *machine) error {
	s.reap(ctx, p, m)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Stop.Std())
	defer cancel()
	if _, err := s.Wait(ctx, p.c.id, p.exec); err != nil {
		return fmt.Errorf("%s does not end: %w", p, err)
	}
	return nil
}
