package sandbox

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// ExecRequest says what process to add to a container.
type ExecRequest struct {
	ID, Exec string
	Process  *pb.Process // for the guest; it becomes the sandbox's
	Streams  stdio.Paths
}

// Exec adds a process to a container that is created or runs. The guest hears of
// it with Start.
func (s *Sandbox) Exec(req *ExecRequest) error {
	if !isIdentifier(req.Exec) {
		return fmt.Errorf("exec id %q: %w", req.Exec, errdefs.ErrInvalidArgument)
	}
	if req.Exec == req.ID {
		return fmt.Errorf("exec id %q is the container's, by which the guest calls its own process: choose another: %w", req.Exec, errdefs.ErrInvalidArgument)
	}
	p, _, err := s.findCreated(req.ID, "")
	if err != nil {
		return err
	}
	if p.c.virtual != nil {
		return fmt.Errorf("exec in container %s: it stands for the pod and does not run in the guest (guest.pause = \"run\" of the configuration has it run): %w",
			req.ID, errdefs.ErrNotImplemented)
	}
	return p.c.add(req.Exec, req.Process, req.Streams, func() { s.sink.ExecAdded(req.ID, req.Exec) })
}

// Execs are the ids of a container's execs that run, in no order.
func (s *Sandbox) Execs(id string) ([]string, error) {
	p, _, err := s.find(id, "")
	if err != nil {
		return nil, err
	}
	var running []string
	for _, e := range p.c.all() {
		if state, _ := e.current(); e.exec != "" && state == Running {
			running = append(running, e.exec)
		}
	}
	return running, nil
}

// startExec starts an exec whose start was begun.
func (s *Sandbox) startExec(ctx context.Context, p *process, m *machine) error {
	begun := time.Now()
	err := s.runExec(ctx, p, m)
	m.trace.phase("exec", begun)
	pid := m.pid()
	p.endStart(err == nil, func() { s.sink.ExecStarted(p.c.id, p.exec, pid) }, s.exitOf(p, m))
	if err != nil {
		p.closeStdio()
		return fmt.Errorf("start %s: %w", p, err)
	}
	if p.c.isEnding() {
		// The container ended meanwhile, perhaps before the guest had this one.
		s.reap(ctx, p, m)
	}
	return nil
}

// runExec gives the exec to the guest, with its streams. On an error nothing of
// it runs.
func (s *Sandbox) runExec(ctx context.Context, p *process, m *machine) error {
	streams, err := stdio.Open(ctx, p.streams, s.streamOptions(p, m))
	if err != nil {
		return err
	}
	p.setStdio(streams)
	err = m.agent.ExecProcess(ctx, &pb.ExecProcessRequest{ContainerId: p.c.id, ExecId: p.exec, Process: p.spec})
	if err != nil {
		return err
	}
	guest, err := m.streams(ctx, p)
	if err != nil {
		s.reap(ctx, p, m)
		return err
	}
	streams.Start(guest)
	return m.spawn(func() { s.watch(p, m) })
}

// endExecs ends the execs of a container whose own process has ended, and waits
// until that was told. Those in its pid namespace are dead already.
func (s *Sandbox) endExecs(c *container, m *machine) {
	left := c.end()
	for _, p := range left {
		err := m.agent.SignalProcess(m.ctx, p.ref(), syscall.SIGKILL)
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) && m.ctx.Err() == nil {
			s.log.WithError(err).Warnf("kill %s", p)
		}
	}
	for _, p := range left {
		select {
		case <-p.exited:
		case <-m.ctx.Done():
			return
		}
	}
	c.abandonExecs()
}
