// Package child owns the processes that a VM consists of: QEMU and the daemons
// beside it. A child dies with the process that started it, is killed through a
// pidfd and never by a number that could have been given to someone else, and
// is reaped by the goroutine that started it.
//
// Every function may be called from any goroutine. The package never
// interprets what a child prints and keeps no list of children.
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one running or ended child.
type Process struct {
	id   Identity
	name string
	// handle keeps the pid from being used for another process as far as
	// Signal is concerned: os.Process holds a pidfd (Linux 5.4 and newer).
	handle *os.Process
	done   chan struct{}
	err    error // why it ended; written before done is closed
}

// Start runs cmd and reaps it. The child is sent SIGKILL when the calling process
// dies. Files of cmd.ExtraFiles stay the caller's to close.
//
// PR_SET_PDEATHSIG counts the death of the thread that forked as the death of
// the parent (prctl(2)), and the Go runtime ends threads at will. So the
// goroutine that starts the child keeps its thread until the child has ended.
func Start(cmd *exec.Cmd) (*Process, error) { return start(cmd, nil) }

// StartFrom is Start with a thread that prepare has changed before it forks, such as
// by a mount namespace of its own: the child inherits that. The thread runs
// nothing else afterwards, and ends with the child.
func StartFrom(prepare func() error, cmd *exec.Cmd) (*Process, error) { return start(cmd, prepare) }

// StartIn is Start for a child in another network namespace, unless that is nil.
// The file stays the caller's to close.
func StartIn(cmd *exec.Cmd, netns *os.File) (*Process, error) {
	if netns == nil {
		return Start(cmd)
	}
	return StartFrom(func() error {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace %s: %w", netns.Name(), err)
		}
		return nil
	}, cmd)
}

func start(cmd *exec.Cmd, prepare func() error) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	p := &Process{name: cmd.Path, done: make(chan struct{})}

	started := make(chan error, 1)
	run := func() {
		if prepare != nil {
			if err := prepare(); err != nil {
				started <- err
				return
			}
		}
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.handle = cmd.Process
		p.id = Identity{Pid: cmd.Process.Pid}
		// The child is not yet waited for, so the pid is its own.
		start, err := startTime(cmd.Process.Pid)
		if err == nil {
			err = setLimits(cmd.Process.Pid)
		}
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			started <- err
			return
		}
		p.id.StartTime = start
		started <- nil
		p.err = endOf(cmd.Wait())
		close(p.done)
	}
	if prepare == nil {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			run()
		}()
	} else {
		go onThread(run)
	}
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// onThread calls f on a thread that ends with it. Not on the first thread of the
// process, which /proc/self shows to everybody, and which does not end.
func onThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // still locked: the runtime ends the thread
	}
	defer runtime.UnlockOSThread()
	other := make(chan struct{})
	go func() { // on another thread, since this one is taken
		defer close(other)
		runtime.LockOSThread()
		f()
	}()
	<-other
}

// setLimits keeps a process that crashes from writing its memory, which is the
// guest's, to a file of the host, and lets it open as many files as this
// process could let itself: a VM has a descriptor open for each layer of an
// image, and the soft limit that a service inherits is often 1024.
//
// The Go runtime raises its own soft limit at the start and gives a child the
// one it found (syscall/rlimit.go), so this has to be asked for.
func setLimits(pid int) error {
	var files unix.Rlimit
	err := errors.Join(
		unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil),
		unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &files))
	if err == nil && files.Cur < files.Max {
		files.Cur = files.Max
		err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &files, nil)
	}
	if errors.Is(err, unix.ESRCH) { // a zombie has no limits any more
		return nil
	}
	return err
}

// Identity names the process for a later run of another program.
func (p *Process) Identity() Identity { return p.id }

// Done is closed when the process has ended and is reaped, and its output is
// read to the end.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended; nil before Done and after an exit with 0.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Kill sends SIGKILL and waits until the process is reaped. Killing a process
// that has ended is no error.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.handle.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s (pid %d): %w", p.name, p.id.Pid, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s (pid %d) after SIGKILL: %w", p.name, p.id.Pid, ctx.Err())
	}
}

// endOf keeps of an error of exec.Cmd.Wait what says how the process ended.
func endOf(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return errors.New(strings.TrimSpace(exit.ProcessState.String()))
	default:
		return err
	}
}

// Identity names a process beyond the life of whoever started it. Its zero value
// names none.
type Identity struct {
	Pid int `json:"pid"`
	// StartTime is field 22 of /proc/<pid>/stat, in clock ticks since the host
	// booted (proc_pid_stat(5)): with the pid it is unique until a reboot.
	StartTime uint64 `json:"start_time"`
}

// Kill sends SIGKILL to the process that id names and waits until it has ended.
// If the pid has gone or belongs to another process, there is nothing to do.
func (id Identity) Kill(ctx context.Context) error {
	if id.Pid <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(id.Pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil // EINVAL: the pid is that of a thread
	}
	if err != nil {
		return fmt.Errorf("pidfd_open %d: %w", id.Pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd") // non-blocking, so the runtime's poller waits for it
	defer f.Close()

	// Compared only now that the descriptor holds on to one process.
	start, err := startTime(id.Pid)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || err == nil && start != id.StartTime {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill pid %d: %w", id.Pid, err)
	}
	return waitPidfd(ctx, f, id.Pid)
}

// waitPidfd waits until the process behind f has ended, which makes f readable
// (pidfd_open(2)).
func waitPidfd(ctx context.Context, f *os.File, pid int) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for the end of pid %d: %w", pid, err)
	}
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
	if ctx.Err() != nil {
		return fmt.Errorf("wait for the end of pid %d after SIGKILL: %w", pid, ctx.Err())
	}
	return err
}
