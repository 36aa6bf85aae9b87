// Package tool runs the programs that make filesystems, mkfs.erofs and
// mkfs.ext4, on files that are already open.
//
// It owns one run from its start to its end: the child is given nothing but the
// files and arguments of the call, dies with this process, is killed when the
// context ends, and is always waited for. Every function may be called from any
// goroutine. The package never interprets what a tool says.
package tool

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxOutput is how much of what a tool says is kept, in bytes: the end,
	// where the reason stands.
	maxOutput = 2048

	// killDelay is how long a killed tool may hold on to its pipes.
	killDelay = time.Second

	// usualLimit is how many files a child may have open without more ado.
	usualLimit = 512
)

// State is a tool as it is installed: another version differs in one of the
// fields but Path.
type State struct {
	Path       string
	Dev, Inode uint64
	Size       int64
	ModTime    time.Time
}

// Find is the tool at the path name, or of that name in PATH.
func Find(name string) (State, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return State{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return State{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return State{}, fmt.Errorf("%q is not a regular file", path)
	}
	return State{Path: path, Dev: uint64(stat.Dev), Inode: stat.Ino, Size: info.Size(), ModTime: info.ModTime()}, nil
}

// Inherited is the name under which a tool finds the file that Run gives it as
// number i.
func Inherited(i int) string { return fmt.Sprintf("/proc/self/fd/%d", 3+i) }

var inheritedName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`/proc/self/fd/\d+`)
})

// Rename puts other names in the place of those of Inherited in what a tool
// said. A name that other does not know stays.
func Rename(said string, other map[string]string) string {
	return inheritedName().ReplaceAllStringFunc(said, func(name string) string {
		if is, ok := other[name]; ok {
			return is
		}
		return name
	})
}

// Run starts the tool at path with the given files and nothing of this process's
// environment, waits for it, and returns the end of its standard output. It is
// killed when ctx ends. An error names path and has the end of what the tool
// said to standard error, with the names of Inherited as in names, which may be
// nil. The files stay the caller's.
func Run(ctx context.Context, path string, given []*os.File, names map[string]string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.WaitDelay = killDelay
	cmd.ExtraFiles = given
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr tail
	cmd.Stdout, cmd.Stderr = &stdout, &stderr

	// The kernel sends that signal when the thread that forked ends, and Go
	// ends threads at will.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	if err == nil {
		if len(given)+len(args) > usualLimit {
			raiseLimit(cmd.Process.Pid)
		}
		err = cmd.Wait()
	}
	said := Rename(strings.TrimSpace(stderr.String()), names)
	switch {
	case err == nil:
		return stdout.data, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s was stopped: %w: %s", path, context.Cause(ctx), said)
	default:
		return nil, fmt.Errorf("%s: %w: %s", path, err, said)
	}
}

// raiseLimit lets a child have as many files open as this process: Go gives it
// back the lower soft limit that it has raised for itself. By the time the child
// has loaded its libraries it is done; should the child be faster, or the limit
// not be raised, it says itself that it has too many files open.
func raiseLimit(pid int) {
	var r unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &r) == nil {
		r.Cur = r.Max
		_ = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &r, nil)
	}
}

// tail keeps the end of what is written to it.
type tail struct{ data []byte }

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if over := len(t.data) - maxOutput; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.data) }
