package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/guest/stream"
)

// process is one process of a container, from before its start to after its
// end. Its fields are set by newProcess and start and only read afterwards, but
// for status, which may be read once exited is closed.
type process struct {
	lib      *libcontainer.Process
	terminal bool

	stdin, stdout, stderr *stream.Stream // stdin and stdout are the terminal, if there is one
	childEnds             []*os.File

	exited chan struct{}
	status int         // exit code, or 128 and the signal
	told   atomic.Bool // a waiter has the status
}

// newProcess opens the pipes, or the socket on which libcontainer hands over
// the terminal. The caller ends it with start or discard.
func newProcess(lib *libcontainer.Process, terminal bool) (*process, error) {
	p := &process{lib: lib, terminal: terminal, exited: make(chan struct{})}
	if terminal {
		return p, nil // the socket belongs to start
	}
	// The ends of root: user namespaces are not made in the guest, the machine
	// is the boundary.
	ends, err := lib.InitializeIO(0, 0)
	if err != nil {
		return nil, fmt.Errorf("open pipes: %w", err)
	}
	for _, end := range []any{lib.Stdin, lib.Stdout, lib.Stderr} {
		p.childEnds = append(p.childEnds, end.(*os.File))
	}
	for _, s := range []struct {
		end any
		to  **stream.Stream
	}{{ends.Stdin, &p.stdin}, {ends.Stdout, &p.stdout}, {ends.Stderr, &p.stderr}} {
		f, err := pollable(s.end.(*os.File))
		if err == nil {
			err = widen(f)
		}
		if err != nil {
			p.discard()
			return nil, fmt.Errorf("open pipes: %w", err)
		}
		*s.to = stream.New(f)
	}
	return p, nil
}

// widen lets a pipe hold as much as is sent at once. A full one makes two changes of
// processes, after which an emulator has to look up all code anew. Root may have pipes of
// any size up to fs.pipe-max-size, which is 1 MiB.
func widen(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { _, failed = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, streamwire.BatchBytes) })
	if errors.Is(failed, unix.EPERM) {
		failed = nil // as wide as it was, which costs time alone
	}
	return errors.Join(err, os.NewSyscallError("fcntl(F_SETPIPE_SZ)", failed))
}

// pollable returns the same open file in a form whose reads and writes can be
// woken by a deadline. It takes f over. InitializeIO asks pipes for their
// descriptors, which makes them blocking.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl(O_NONBLOCK)", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// discard closes everything of a process that was not started.
func (p *process) discard() {
	for _, f := range p.childEnds {
		_ = f.Close()
	}
	p.childEnds = nil
	p.closeStreams()
}

func (p *process) closeStreams() {
	for _, s := range []*stream.Stream{p.stdin, p.stdout, p.stderr} {
		s.Close()
	}
}

// start starts the process in c, as its first one or as another, and returns
// when libcontainer says that it stands. From then on a goroutine waits for its
// end; ended, if not nil, is called there before waiters wake.
//
// That goroutine makes the start itself and keeps its thread until the process
// has ended. This is what lets PID 1 reap orphans without stealing the exit
// status of this process: a child belongs to the thread that made it, package
// boot reaps those of the main thread only, and the kernel would give children
// of a thread that ends to the main one.
func (p *process) start(c *libcontainer.Container, ended func(status int)) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.startLocked(c)
		if err != nil {
			p.discard()
		}
		started <- err
		if err != nil {
			return
		}
		p.status = exitStatus(p.lib.Wait())
		if ended != nil {
			ended(p.status)
		}
		close(p.exited)
	}()
	return <-started
}

func (p *process) startLocked(c *libcontainer.Container) error {
	var console *consoleSocket
	if p.terminal {
		var err error
		if console, err = newConsoleSocket(); err != nil {
			return err
		}
		defer console.Close()
		p.lib.ConsoleSocket = console.child
	}
	if err := c.Start(p.lib); err != nil {
		return err
	}
	// Only the process may hold these ends now: their closing is the end of
	// the stream.
	for _, f := range p.childEnds {
		_ = f.Close()
	}
	p.childEnds = nil
	if console != nil {
		if err := p.takeTerminal(console); err != nil {
			_ = p.lib.Signal(unix.SIGKILL)
			_, _ = p.lib.Wait()
			return err
		}
	}
	return nil
}

func (p *process) takeTerminal(console *consoleSocket) error {
	master, err := console.receive()
	if err != nil {
		return err
	}
	p.stdout = stream.New(master)
	p.stdin, err = stream.Input(master)
	return err
}

// exitStatus is what a shell would say of the end of a process.
func exitStatus(state *os.ProcessState, err error) int {
	var exit *exec.ExitError
	if state == nil && errors.As(err, &exit) {
		state = exit.ProcessState
	}
	if state == nil {
		return 255 // the status is lost; wait(2) failed
	}
	ws := state.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// wait returns the exit status, once there is one.
func (p *process) wait(ctx context.Context) (int, error) {
	select {
	case <-p.exited:
		return p.status, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// fetched reports whether the host has the status and all output.
func (p *process) fetched() bool {
	return p.told.Load() && p.stdout.Ended() && p.stderr.Ended()
}

func (p *process) signal(sig unix.Signal) error {
	err := p.lib.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("the process has ended: %w", errdefs.ErrNotFound)
	}
	return err
}

// closeStdin ends the input of the process. A terminal has no end of its own to
// close, it stays.
func (p *process) closeStdin() error {
	if p.terminal {
		return nil
	}
	return p.stdin.CloseInput()
}

func (p *process) resize(rows, columns uint16) error {
	if !p.terminal {
		return fmt.Errorf("the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	return p.stdout.Resize(rows, columns)
}

// stream returns the stream that a host asks for by a connection.
func (p *process) stream(kind streamwire.Kind) (*stream.Stream, error) {
	s := map[streamwire.Kind]*stream.Stream{streamwire.Stdin: p.stdin, streamwire.Stdout: p.stdout, streamwire.Stderr: p.stderr}[kind]
	if s == nil {
		return nil, fmt.Errorf("the process has no %s of its own: %w", kind, errdefs.ErrFailedPrecondition)
	}
	return s, nil
}
