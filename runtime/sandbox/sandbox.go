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
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// statusKilled is the exit status of a process whose VM is gone: 128 + SIGKILL.
const statusKilled = 128 + int(syscall.SIGKILL)

// statusNever is that of an exec that never ran: its start failed, or its
// container ended first.
const statusNever = 255

// Sink takes the events of a sandbox, in their order and each of them once.
// Its methods are called with locks held: they must not wait and must not call
// the sandbox. exec is "" for a container's own process.
type Sink interface {
	Created(req *CreateRequest, pid int)
	Started(id string, pid int)
	ExecAdded(id, exec string)
	ExecStarted(id, exec string, pid int)
	OOM(id string)
	Paused(id string)
	Resumed(id string)
	Exited(id, exec string, pid int, exit Exit)
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
	remote    stdio.Remote
	log       *log.Entry
	start     startVM

	mu         sync.Mutex
	containers map[string]*container
	machine    *machine // nil while there is no container
	serial     int      // numbers containers and disks, never reused
}

// New returns a sandbox without a VM; the first Create boots it. remote has the
// streams that clients open to the shim, and may be nil.
func New(namespace string, sink Sink, remote stdio.Remote, logger *log.Entry) *Sandbox {
	return &Sandbox{
		namespace: namespace, sink: sink, remote: remote, log: logger, start: startQEMU,
		containers: map[string]*container{},
	}
}

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
		err = m.agent.StartContainer(ctx, id)
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
	err := m.agent.SignalProcess(ctx, p.ref(), syscall.SIGKILL)
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
// VM with the last one. One that is being created, by a client that has gone
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
			return Info{}, p.c.giveUp(ctx)
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

// find returns a process, "" for the container's own, with its VM.
func (s *Sandbox) find(id, exec string) (*process, *machine, error) {
	s.mu.Lock()
	c, ok := s.containers[id]
	m := s.machine
	s.mu.Unlock()
	if !ok || m == nil {
		return nil, nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	p, err := c.process(exec)
	return p, m, err
}

// findCreated is find for what needs the agent: a container that it has.
func (s *Sandbox) findCreated(id, exec string) (*process, *machine, error) {
	p, m, err := s.find(id, exec)
	if err != nil {
		return nil, nil, err
	}
	if state, _ := p.c.init.current(); state == Creating {
		return nil, nil, fmt.Errorf("container %s is %s: %w", id, state, errdefs.ErrFailedPrecondition)
	}
	return p, m, nil
}

// watch waits for the end of a process and hands over its output before it tells
// anyone. The end of a container's own process is that of its execs, and is told
// after theirs.
func (s *Sandbox) watch(p *process, m *machine) {
	status, err := m.agent.WaitProcess(m.ctx, p.ref())
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
	p.ended(Exit{Status: status, At: at}, s.exitOf(p, m))
}

func (s *Sandbox) exitOf(p *process, m *machine) func(Exit) {
	return func(e Exit) { s.sink.Exited(p.c.id, p.exec, m.pid(), e) }
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
		if state, _ := c.init.current(); state == Creating {
			continue // Create sees it by itself
		}
		s.lost(c, m)
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

// dismantle takes a container apart and forgets it; with the last one goes the
// VM. It is the end of Delete and of a Create that failed. Its errors concern
// nobody but the log: what they leave goes with the VM.
func (s *Sandbox) dismantle(ctx context.Context, c *container, m *machine) {
	// The caller may be gone; what went up comes down all the same. Every step
	// has a deadline of its own.
	ctx = context.WithoutCancel(ctx)
	defer close(c.gone)
	logger := s.log.WithField("container", c.id)
	c.abandonExecs()
	for _, p := range c.all() {
		p.closeStdio()
	}
	mounted := false
	if c.inGuest && m.alive() {
		if state, _ := c.init.current(); state == Creating {
			s.endCreated(ctx, c, m)
		}
		// This also writes the upper back: it is not for the VM's end to do.
		if err := m.agent.RemoveContainer(ctx, c.id); err != nil && !errdefs.IsNotFound(err) {
			logger.WithError(err).Error("the guest does not let go of the container: its disks stay attached until the virtual machine ends")
			mounted = true
		}
	}
	if s.forget(c) {
		if err := m.stop(ctx); err != nil {
			logger.WithError(err).Warn("end the virtual machine")
		}
		return
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
