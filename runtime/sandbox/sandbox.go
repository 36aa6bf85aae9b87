// Package sandbox is one virtual machine with the containers in it: the only
// place where mounts, the VM and the agent meet.
//
// A Sandbox owns the VM's processes, the sandbox's directory below state_dir,
// the record in the bundle, and every stream and goroutine of its containers.
// Methods may be called from any goroutine and at the same time; those that
// only look (Info, Wait, Empty) answer while a VM boots or a create hangs,
// because no lock is held over a boot, a QMP command, a call to the agent or a
// wait. The package knows nothing of containerd's API: events leave through
// the Sink.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// statusKilled is the exit status of a process whose VM is gone: 128 + SIGKILL.
const statusKilled = 128 + int(syscall.SIGKILL)

// Sink takes the events of a sandbox, in their order and each of them once.
// Its methods are called with locks held: they must not wait and must not call
// the sandbox.
type Sink interface {
	Created(req *CreateRequest, pid int)
	Started(id string, pid int)
	Exited(id string, pid int, exit Exit)
	Deleted(id string, pid int, exit Exit)
}

// CreateRequest says what container to create. Bundle holds config.json.
type CreateRequest struct {
	ID      string
	Bundle  string
	Rootfs  []rootfs.Mount
	Streams stdio.Paths
	// Config is that of the VM; it counts for the container that boots it.
	Config configs.Config
}

// Sandbox is one VM with its containers. The zero value is not usable.
type Sandbox struct {
	namespace string
	sink      Sink
	log       *log.Entry

	mu         sync.Mutex
	containers map[string]*container
	machine    *machine // nil while there is no container
	serial     int      // numbers containers and disks, never reused
}

// New returns a sandbox without a VM; the first Create boots it.
func New(namespace string, sink Sink, logger *log.Entry) *Sandbox {
	return &Sandbox{namespace: namespace, sink: sink, log: logger, containers: map[string]*container{}}
}

// Start lets the process of a created container run.
func (s *Sandbox) Start(ctx context.Context, id string) (pid int, err error) {
	c, m, err := s.find(id)
	if err != nil {
		return 0, err
	}
	if err := c.beginStart(); err != nil {
		return 0, err
	}
	pid = m.pid()
	begun := time.Now()
	err = m.agent.StartContainer(ctx, id)
	m.trace.phase("container start", begun)
	c.endStart(err == nil, func() { s.sink.Started(id, pid) }, s.exitOf(c, m))
	if err != nil {
		s.reap(ctx, c, m)
		return 0, fmt.Errorf("start container %s: %w", id, err)
	}
	return pid, nil
}

// reap makes sure that a container whose start failed comes to its end, so
// that it can be deleted.
func (s *Sandbox) reap(ctx context.Context, c *container, m *machine) {
	ctx = context.WithoutCancel(ctx)
	err := m.agent.SignalProcess(ctx, agentclient.Process{Container: c.id}, syscall.SIGKILL)
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		s.log.WithError(err).Warnf("kill container %s after its start failed", c.id)
	}
}

// Kill sends a signal to the container's process, SIGKILL to all of its
// processes, and ends the VM if its agent does not answer to that. A container that is being created is given up instead.
func (s *Sandbox) Kill(ctx context.Context, id string, sig syscall.Signal) error {
	c, m, err := s.find(id)
	if err != nil {
		return err
	}
	switch state, _ := c.current(); state {
	case Creating:
		c.abandon()
		return nil
	case Stopped, Deleted:
		return fmt.Errorf("container %s: process already finished: %w", id, errdefs.ErrNotFound)
	}
	err = m.agent.SignalProcess(ctx, agentclient.Process{Container: id}, sig)
	if err != nil && sig == syscall.SIGKILL && ctx.Err() == nil && unanswered(err) {
		// Whoever sends SIGKILL wants an end. A guest that does not answer
		// gets it as a whole.
		m.abort(err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	return nil
}

// unanswered says whether a call failed because the agent gave no answer.
func unanswered(err error) bool {
	return errors.Is(err, agentclient.ErrConnection) || errors.Is(err, context.DeadlineExceeded)
}

// Wait waits until the container has stopped and its output is handed over.
func (s *Sandbox) Wait(ctx context.Context, id string) (Exit, error) {
	c, _, err := s.find(id)
	if err != nil {
		return Exit{}, err
	}
	select {
	case <-c.exited:
		_, exit := c.current()
		return exit, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for container %s: %w", id, ctx.Err())
	}
}

// Info describes a container.
func (s *Sandbox) Info(id string) (Info, error) {
	c, m, err := s.find(id)
	if err != nil {
		return Info{}, err
	}
	state, exit := c.current()
	return Info{ID: c.id, Bundle: c.bundle, State: state, Pid: m.pid(), Streams: c.streams, Exit: exit}, nil
}

// CloseStdin tells the container's process that no more input comes, once
// what was written before is read.
func (s *Sandbox) CloseStdin(id string) error {
	c, _, err := s.find(id)
	if err != nil {
		return err
	}
	if streams := c.stdio(); streams != nil {
		streams.CloseStdin()
	}
	return nil
}

// Delete removes a container that has stopped, or was never started, and the
// VM with the last one. One that is being created, by a client that has gone
// away, is given up: the error is then of class errdefs.ErrNotFound.
func (s *Sandbox) Delete(ctx context.Context, id string) (Info, error) {
	c, m, err := s.find(id)
	if err != nil {
		return Info{}, err
	}
	switch state, _ := c.current(); state {
	case Creating:
		return Info{}, c.giveUp(ctx)
	case Created:
		if err := s.kill(ctx, c, m); err != nil {
			return Info{}, err
		}
	}
	if err := c.beginDelete(); err != nil {
		return Info{}, err
	}
	info := Info{ID: id, Bundle: c.bundle, State: Deleted, Pid: m.pid(), Streams: c.streams}
	_, info.Exit = c.current()
	s.dismantle(ctx, c, m)
	c.endDelete()
	s.sink.Deleted(id, info.Pid, info.Exit)
	return info, nil
}

func (s *Sandbox) kill(ctx context.Context, c *container, m *machine) error {
	s.reap(ctx, c, m)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Stop.Std())
	defer cancel()
	if _, err := s.Wait(ctx, c.id); err != nil {
		return fmt.Errorf("container %s does not end: %w", c.id, err)
	}
	return nil
}

// Empty says whether the sandbox has no container, and so no VM.
func (s *Sandbox) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers) == 0
}

// Pid returns QEMU's process id, 0 while there is no VM.
func (s *Sandbox) Pid() int {
	s.mu.Lock()
	m := s.machine
	s.mu.Unlock()
	if m == nil {
		return 0
	}
	return m.pid()
}

// Close ends the VM, whatever runs in it, and waits until it is gone.
func (s *Sandbox) Close(ctx context.Context) error {
	s.mu.Lock()
	m := s.machine
	s.machine = nil
	for _, c := range s.containers {
		c.abandon()
	}
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	return m.stop(ctx)
}

func (s *Sandbox) find(id string) (*container, *machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[id]
	if !ok || s.machine == nil {
		return nil, nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, s.machine, nil
}

// watch waits for the end of a container's process and hands over its output
// before it tells anyone.
func (s *Sandbox) watch(c *container, m *machine) {
	status, err := m.agent.WaitProcess(m.ctx, agentclient.Process{Container: c.id})
	at := time.Now()
	if err != nil {
		if m.ctx.Err() == nil {
			s.log.WithError(err).Errorf("wait for container %s; its virtual machine is ended", c.id)
		}
		// Whoever ended the VM, or will, ends the container.
		m.abort(fmt.Errorf("wait for container %s: %w", c.id, err))
		return
	}
	if err := c.stdio().Drain(m.cfg.Deadlines.Drain.Std()); err != nil {
		s.log.WithError(err).Warnf("container %s", c.id)
	}
	c.ended(Exit{Status: status, At: at}, s.exitOf(c, m))
}

func (s *Sandbox) exitOf(c *container, m *machine) func(Exit) {
	return func(e Exit) { s.sink.Exited(c.id, m.pid(), e) }
}

// died ends everything that ran in a VM that is gone.
func (s *Sandbox) died(m *machine) {
	s.mu.Lock()
	var all []*container
	if s.machine == m {
		for _, c := range s.containers {
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	for _, c := range all {
		if state, _ := c.current(); state == Creating {
			continue // Create sees it by itself
		}
		c.stdio().Close()
		c.ended(Exit{Status: statusKilled, At: time.Now()}, s.exitOf(c, m))
	}
}

// dismantle takes a container apart and forgets it; with the last one goes the
// VM. It is the end of Delete and of a Create that failed. Its errors concern
// nobody but the log: what they leave goes with the VM.
func (s *Sandbox) dismantle(ctx context.Context, c *container, m *machine) {
	// The caller may be gone; what went up comes down all the same. Every step
	// has a deadline of its own.
	ctx = context.WithoutCancel(ctx)
	defer close(c.gone)
	logger := s.log.WithField("container", c.id)
	if streams := c.stdio(); streams != nil {
		streams.Close()
	}
	if c.inGuest && m.alive() {
		// This also writes the upper back: it is not for the VM's end to do.
		if err := m.agent.RemoveContainer(ctx, c.id); err != nil && !errdefs.IsNotFound(err) {
			logger.WithError(err).Warn("remove container in the guest")
		}
	}
	if s.forget(c) {
		if err := m.stop(ctx); err != nil {
			logger.WithError(err).Warn("end the virtual machine")
		}
		return
	}
	if err := m.detach(ctx, c); err != nil {
		logger.WithError(err).Warn("detach disks")
	}
	if err := c.removeDir(); err != nil {
		logger.WithError(err).Warn("remove the container's directory")
	}
}

// forget removes a container and says whether it was the last one; the sandbox
// has no VM from then on.
func (s *Sandbox) forget(c *container) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	if len(s.containers) > 0 {
		return false
	}
	s.machine = nil
	return true
}

// errAbandoned is the cause when a container that was being created is killed.
var errAbandoned = errors.New("killed while it was being created")
