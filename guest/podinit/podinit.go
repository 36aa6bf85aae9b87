// Package podinit is the pid namespace that containers of a pod share, and its
// first process.
//
// A Namespace is made when the first container wants it, and again if its first
// process has ended, which ends all others in it. Path may be called from any
// goroutine. The process itself, which Main is the whole of, does nothing:
// orphans that fall to it are gone without a trace, and it has neither files nor
// powers that those who can look into it could take.
package podinit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Word is the first argument of this program with which it is such a process.
const Word = "pod-init"

// nobody is who the process is. It could be nobody of a container as well, who
// may not look into it all the same: see Main.
const nobody = 65534

// readyFD is the descriptor on which the process says that it has shut itself in.
const readyFD = 3

// Namespace is the pid namespace of a pod. The zero value is ready to use.
type Namespace struct {
	mu    sync.Mutex
	first *first // nil while there is none
}

// first is one first process.
type first struct {
	started chan struct{} // closed when the next two are final
	pid     int
	err     error
}

// Path is what the namespace can be joined by, as a path of the guest. The first
// caller makes it; those who come meanwhile wait for that.
func (n *Namespace) Path(ctx context.Context) (string, error) {
	n.mu.Lock()
	f := n.first
	if f == nil {
		f = &first{started: make(chan struct{})}
		n.first = f
		go f.run(func() { n.forget(f) })
	}
	n.mu.Unlock()
	select {
	case <-f.started:
	case <-ctx.Done():
		return "", fmt.Errorf("wait for the pid namespace of the pod: %w", ctx.Err())
	}
	if f.err != nil {
		return "", fmt.Errorf("make the pid namespace of the pod: %w", f.err)
	}
	return fmt.Sprintf("/proc/%d/ns/pid", f.pid), nil
}

func (n *Namespace) forget(f *first) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.first == f {
		n.first = nil
	}
}

// run starts the process and waits for its end. It keeps its thread meanwhile, as
// every maker of a process does here (boot.ReapOrphans).
func (f *first) run(ended func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd, err := start()
	if err != nil {
		f.err = err
		ended()
		close(f.started)
		return
	}
	f.pid = cmd.Process.Pid
	close(f.started)
	_ = cmd.Wait() // however it ended
	ended()
}

func start() (*exec.Cmd, error) {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	cmd := exec.Command("/proc/self/exe", Word)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	cmd.Env = []string{}
	cmd.ExtraFiles = []*os.File{theirs} // readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, err
	}
	// It says a byte, or ends.
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		_ = cmd.Process.Kill()
		err = errors.Join(cmd.Wait(), err)
		return nil, fmt.Errorf("its first process: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return cmd, nil
}

// Main is that process. It does not return.
func Main() {
	if err := shutIn(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Children of a process that ignores SIGCHLD need nobody to wait for them
	// (wait(2)). Every other signal that can be ignored is.
	signal.Ignore()
	ready := os.NewFile(readyFD, "ready")
	if _, err := ready.Write([]byte{1}); err != nil {
		os.Exit(1)
	}
	_ = ready.Close()
	_ = os.Stderr.Close() // the agent reads it to its end
	for {
		_ = unix.Pause()
	}
}

// shutIn leaves the process an empty root directory, no powers, and nobody who
// could look into it but those who may look into any process.
func shutIn() error {
	// An unmount of the agent's reaches here until all is gone.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("own mounts: %w", err)
	}
	const root = "/tmp"
	if err := unix.Mount("none", root, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k"); err != nil {
		return fmt.Errorf("empty root: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("empty root: %w", err)
	}
	// The old root lies over the new one then, and is what "." is (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("empty root: pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
		return fmt.Errorf("become nobody: %w", err)
	}
	// What is nobody in a container is not to look into it (ptrace(2)).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_DUMPABLE): %w", err)
	}
	return nil
}
