package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/runtime/metrics"
)

// watch waits for the end of a process and hands over its output before it tells
// anyone. The end of a container's own process is that of its execs, and is told
// after theirs.
func (s *Sandbox) watch(p *process, m *machine) {
	status, err := p.c.runner(m).WaitProcess(m.ctx, p.ref())
	at := time.Now()
	if err != nil {
		if m.ctx.Err() == nil {
			s.log.WithError(err).Errorf("wait for %s; its virtual machine is ended", p)
		}
		m.abort(fmt.Errorf("wait for %s: %w", p, err))
		<-m.ctx.Done()
		s.lost(p.c, m)
		return
	}
	if p.exec == "" {
		s.endExecs(p.c, m)
	}
	if err := p.stdio().Drain(m.cfg.Deadlines.Drain.Std()); err != nil {
		s.log.WithError(err).Warnf("%s", p)
	}
	if p.exec == "" || status == statusKilled {
		s.checkOOM(p.c, m)
	}
	if p.exec == "" {
		m.bringBack(p.c)
	}
	p.ended(Exit{Status: status, At: at}, s.exitOf(p, m))
}

func (s *Sandbox) exitOf(p *process, m *machine) func(Exit) {
	return func(e Exit) { s.sink.Exited(p.c.id, p.exec, m.pid(), e) }
}

// died ends everything that ran in a VM that is gone.
func (s *Sandbox) died(m *machine) {
	s.mu.Lock()
	var all []*container
	var unasked *held
	if s.machine == m {
		for _, c := range s.containers {
			all = append(all, c)
		}
		if s.pod != nil && s.pod.api != nil && !s.pod.api.ending {
			unasked = s.pod.api
		}
	}
	s.mu.Unlock()
	for _, c := range all {
		if state, _ := c.init.current(); state == Creating {
			continue // Create sees it by itself
		}
		s.lost(c, m)
	}
	if unasked != nil {
		s.podEnded(unasked, statusKilled)
	}
}

// lost ends the processes of a container whose VM is gone, its own one last. It
// may be called more than once and at the same time.
func (s *Sandbox) lost(c *container, m *machine) {
	c.abandonExecs()
	for _, p := range c.all() {
		if streams := p.stdio(); streams != nil {
			streams.Abort()
		}
		p.ended(Exit{Status: statusKilled, At: time.Now()}, s.exitOf(p, m))
	}
}

// undo ends a Create that failed. If nobody hears of it the container stays as one
// that has ended.
func (s *Sandbox) undo(ctx context.Context, c *container, m *machine, req *CreateRequest) {
	if s.dismantle(ctx, c, m, req.Unheard) {
		return
	}
	if state, _ := c.init.current(); state == Creating {
		s.sink.Created(req, m.pid())
	}
	c.init.ended(Exit{Status: statusKilled, At: time.Now()}, s.exitOf(c.init, m))
}

// dismantle takes a container apart and forgets it; with the last one, or that
// of the pod, goes the VM. It is the end of Delete and of a Create that failed. Its errors concern
// nobody but the log: what they leave goes with the VM.
//
// If unheard is set and says that nobody hears of the end, the container is not
// forgotten, and gone is false. A containerd that was restarted meanwhile has asked
// for its pids, has the task since then, and could get rid neither of a task that
// is not known here, nor of the shim.
func (s *Sandbox) dismantle(ctx context.Context, c *container, m *machine, unheard func() bool) (gone bool) {
	// The caller may be gone; what went up comes down all the same. Every step
	// has a deadline of its own.
	ctx = context.WithoutCancel(ctx)
	logger := s.log.WithField("container", c.id)
	c.abandonExecs()
	for _, p := range c.all() {
		p.closeStdio()
	}
	c.closeMessages()
	c.unfollow() // else it would make again what the guest removes
	mounted := false
	if c.inGuest && m.alive() {
		if state, _ := c.init.current(); state == Creating {
			s.endCreated(ctx, c, m)
		}
		// This also writes the upper back: it is not for the VM's end to do.
		removing := time.Now()
		err := m.agent.RemoveContainer(ctx, c.id)
		m.trace.phase("container remove", removing)
		if err != nil && !errdefs.IsNotFound(err) {
			logger.WithError(err).Error("the guest does not let go of the container: its disks stay attached until the virtual machine ends")
			mounted = true
		} else {
			c.inGuest = false
		}
	}
	// As late as it can be said. Who has hung up by now asks for the pids when the
	// next containerd is up, and finds none.
	if unheard != nil && unheard() {
		return false
	}
	defer close(c.gone)
	if s.forget(c) {
		if err := m.stop(ctx); err != nil {
			logger.WithError(err).Warn("end the virtual machine")
		}
		return true
	}
	// A guest ejects a disk that it has mounted, and loses what it would have
	// written to it (decision 5).
	if !mounted {
		if err := m.detach(ctx, c); err != nil {
			logger.WithError(err).Warn("detach disks")
		}
	}
	if err := c.removeDir(); err != nil {
		logger.WithError(err).Warn("remove the container's directory")
	}
	return true
}

// endCreated ends the process of a container whose creation failed after the
// guest had made it.
func (s *Sandbox) endCreated(ctx context.Context, c *container, m *machine) {
	s.reap(ctx, c.init, m)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Stop.Std())
	defer cancel()
	if _, err := m.agent.WaitProcess(ctx, c.init.ref()); err != nil && !errdefs.IsNotFound(err) {
		s.log.WithError(err).Warnf("end %s", c.init)
	}
}

// forget removes a container and says whether the VM ends with it: nothing holds
// it any more, or its pod is gone. What is left of a pod that is gone keeps its
// dead VM, so that it can still be asked for and deleted.
func (s *Sandbox) forget(c *container) (end bool) {
	c.mu.Lock()
	used := metrics.Time(c.stats)
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	s.spent = metrics.Sum([]*pb.StatsContainerResponse{s.spent, used})
	if len(s.containers) > 0 || s.pod != nil && s.pod.api != nil {
		return c.infra
	}
	s.machine, s.pod = nil, nil
	return true
}
