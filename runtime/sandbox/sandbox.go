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

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor/template"
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
	// Config is that of the VM; what is about the VM counts for the container that
	// boots it.
	Config configs.Config
	// Arrived is when the request came, for the trace of the start; now, if zero.
	Arrived time.Time
	// Caller is the traceparent that came with the request (W3C Trace Context), if any.
	Caller string
	// Unheard, if set, says whether nobody is left to hear how Create ends.
	Unheard func() bool
}

// Sandbox is one VM with its containers. The zero value is not usable.
type Sandbox struct {
	namespace string
	sink      Sink
	remote    stdio.Remote
	log       *log.Entry
	start     startVM
	lend      lender

	mu         sync.Mutex
	containers map[string]*container
	machine    *machine // nil while neither a container nor the Sandbox API holds it
	pod        *pod     // nil if the VM is not a pod's; it comes and goes with the machine
	serial     int      // numbers containers and disks, never reused
	launch     launch   // of the shim, until there is a VM
	// spent is the processor time of containers that are gone.
	spent *pb.StatsContainerResponse
}

// New returns a sandbox without a VM; the first Create boots it, or CreatePod. remote has the
// streams that clients open to the shim, and may be nil.
func New(namespace string, sink Sink, remote stdio.Remote, logger *log.Entry) *Sandbox {
	return &Sandbox{
		namespace: namespace, sink: sink, remote: remote, log: logger, start: startQEMU, lend: template.Store.Lend,
		containers: map[string]*container{},
	}
}

// Launched says when the shim's process began and when it began to serve: a part of the
// start of its first VM.
func (s *Sandbox) Launched(began, serving time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.launch = launch{began, serving}
}

// takeLaunch returns what Launched was told, once. s.mu is held.
func (s *Sandbox) takeLaunch() launch {
	l := s.launch
	s.launch = launch{}
	return l
}

// Empty says whether nothing holds the VM: no container, and no pod of the Sandbox
// API.
func (s *Sandbox) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers) == 0 && (s.pod == nil || s.pod.api == nil)
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
	m, p := s.machine, s.pod
	s.machine, s.pod = nil, nil
	for _, c := range s.containers {
		c.abandon()
	}
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	err := m.stop(ctx)
	if p != nil && p.api != nil {
		s.podEnded(p.api, statusKilled)
	}
	return err
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

// errAbandoned is the cause when a container that was being created is killed.
var errAbandoned = errors.New("killed while it was being created")
