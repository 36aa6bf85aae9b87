package sandbox

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// State is where a process stands. It only moves forward, but for the way back
// from Paused to Running.
type State int

const (
	Creating State = iota // the VM boots or the guest makes it; Kill cancels
	Created               // waits for Start; an exec is not in the guest yet
	Running
	Paused  // frozen, with all of its container
	Stopped // exited, its output handed over; only Delete is left
	Deleted
)

func (s State) String() string {
	switch s {
	case Creating:
		return "creating"
	case Created:
		return "created"
	case Running:
		return "running"
	case Paused:
		return "paused"
	case Stopped:
		return "stopped"
	case Deleted:
		return "deleted"
	}
	return fmt.Sprintf("state %d", int(s))
}

// Exit is how a process ended.
type Exit struct {
	Status int // as a shell has it: 128 plus the signal's number
	At     time.Time
}

// Info describes a process to those who ask.
type Info struct {
	ID, Bundle string // of its container
	Exec       string // "" for the container's own process
	State      State
	Pid        int // QEMU's, on the host
	Streams    stdio.Paths
	Exit       Exit // set once State is Stopped
}

// process is one process of a container: its own one, whose state is the
// container's, or an exec. The container's mutex guards what is below the line.
type process struct {
	c       *container
	exec    string // "" for the container's own
	streams stdio.Paths
	exited  chan struct{} // closed when it has stopped, or will never run

	// ── c.mu ──
	state    State
	spec     *pb.Process // of an exec, for its start
	io       *stdio.IO   // nil until the streams are opened
	starting bool        // Start is under way: its event goes out before an exit's
	deleting bool        // Delete is under way
	noInput  bool        // CloseStdin came before the streams
	pending  *Exit       // an exit that waits for Start
	exit     Exit
}

func newProcess(c *container, exec string, streams stdio.Paths) *process {
	return &process{c: c, exec: exec, streams: streams, exited: make(chan struct{})}
}

// ref is what the agent calls it.
func (p *process) ref() agentclient.Process {
	return agentclient.Process{Container: p.c.id, Exec: p.exec}
}

// String is how errors and the log call it.
func (p *process) String() string {
	if p.exec == "" {
		return "container " + p.c.id
	}
	return "exec " + p.exec + " of container " + p.c.id
}

// illegal is the error for an operation that the state does not allow; c.mu is
// held.
func (p *process) illegal(want State) error {
	return fmt.Errorf("%s is %s, not %s: %w", p, p.state, want, errdefs.ErrFailedPrecondition)
}

func (p *process) current() (State, Exit) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.state, p.exit
}

// seen is the state that others are told: an exec of a frozen container is
// frozen.
func (p *process) seen() (State, Exit) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.exec != "" && p.state == Running && p.c.init.state == Paused {
		return Paused, p.exit
	}
	return p.state, p.exit
}

// beginStart claims the transition from Created to Running. An exec needs a
// container that runs.
func (p *process) beginStart() error {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.exec != "" {
		if err := p.c.takesExec(Running); err != nil {
			return err
		}
	}
	if p.state != Created || p.starting {
		return p.illegal(Created)
	}
	p.starting = true
	return nil
}

// endStart completes it. started is called under the lock, before any exit is
// seen, and must not wait; it is not called if the start failed. A container
// whose start failed stays and ends by itself; an exec has stopped then, and
// nobody is told.
func (p *process) endStart(ok bool, started func(), exited func(Exit)) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.starting = false
	if !ok && p.exec != "" {
		p.never(statusNever)
		return
	}
	if ok {
		if p.state == Created {
			p.state = Running
		}
		started()
	}
	if p.pending != nil {
		exit := *p.pending
		p.pending = nil
		p.stop(exit, exited)
	}
}

// ended records the exit, once: later calls change nothing. exited is called
// under the lock and must not wait.
func (p *process) ended(exit Exit, exited func(Exit)) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	switch {
	case p.state == Stopped || p.state == Deleted || p.pending != nil:
	case p.starting:
		p.pending = &exit
	default:
		p.stop(exit, exited)
	}
}

func (p *process) stop(exit Exit, exited func(Exit)) {
	p.state, p.exit = Stopped, exit
	exited(exit)
	close(p.exited)
}

// never ends the life of an exec that has not run, and will not; c.mu is held.
func (p *process) never(status int) {
	if p.state == Stopped || p.state == Deleted {
		return
	}
	p.state, p.exit = Stopped, Exit{Status: status, At: time.Now()}
	close(p.exited)
}

// beginDelete claims the deletion of a process that has stopped, or of an exec
// that was not started.
func (p *process) beginDelete() error {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.deleting || p.state == Deleted {
		return fmt.Errorf("%s is being deleted: %w", p, errdefs.ErrNotFound)
	}
	if p.exec != "" && p.state == Created && !p.starting {
		p.never(0) // nobody wanted it to run, as runc's shim has it
	}
	if p.state != Stopped {
		return p.illegal(Stopped)
	}
	p.deleting = true
	return nil
}

// keep takes a deletion back.
func (p *process) keep() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.deleting = false
}

func (p *process) endDelete() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.state = Deleted
	delete(p.c.execs, p.exec)
}

// setStdio gives the process its streams, and closes the input if that was
// asked for already.
func (p *process) setStdio(s *stdio.IO) {
	p.c.mu.Lock()
	p.io = s
	noInput := p.noInput
	p.c.mu.Unlock()
	if noInput {
		s.CloseStdin()
	}
}

func (p *process) stdio() *stdio.IO {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.io
}

// closeStdin says that no more input comes, now or as soon as there is a
// stream.
func (p *process) closeStdin() {
	p.c.mu.Lock()
	p.noInput = true
	s := p.io
	p.c.mu.Unlock()
	if s != nil {
		s.CloseStdin()
	}
}

// closeStdio ends the streams, if there are any.
func (p *process) closeStdio() {
	if s := p.stdio(); s != nil {
		s.Close()
	}
}
