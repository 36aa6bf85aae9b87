package template

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
)

// Job is a template to build by a process of its own, which outlives the one that
// starts it: a pod may end before its template is there.
type Job struct {
	Store Store
	Spec  qemu.Spec
}

const (
	// word is the one argument of a program that is to do what Work does.
	word = "build-template"
	// detached says in the environment that the process is the one that works.
	detached = "EROFSVM_DETACHED=1"

	// workTimeout bounds a build: an emulated guest on a machine with other work, to
	// which it leaves all.
	workTimeout = 15 * time.Minute
	// launchTimeout bounds the start of the process that works.
	launchTimeout = 10 * time.Second
	// maxJob bounds what is read of a job, in bytes.
	maxJob = 1 << 20

	lowest = 19 // of setpriority(2)
)

// IsWork says whether a program was started to build a template; its main then calls
// Work and nothing else.
func IsWork(args []string) bool { return len(args) == 2 && args[1] == word }

// Launch starts the job in a process of its own session, with the least priority. It
// does not wait for its end. program is one whose main looks at IsWork. If started is
// not nil it is called with the process's parent, which waits for it, and may move it
// to a cgroup, say, where the process that works then begins.
func (j Job) Launch(ctx context.Context, program string, started func(pid int) error) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	// The child starts another one, and ends: that one is nobody's to wait for.
	cmd := exec.CommandContext(ctx, program, word)
	cmd.Env, cmd.Dir = []string{}, "/"
	var said bytes.Buffer
	cmd.Stderr = &said
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s %s: %w", program, word, err)
	}
	// It starts the one that works when it has read the job to its end.
	if started != nil {
		err = started(cmd.Process.Pid)
	}
	if err == nil {
		_, err = stdin.Write(text)
	}
	if err != nil {
		cancel()
	}
	if err := errors.Join(err, stdin.Close(), cmd.Wait()); err != nil {
		return fmt.Errorf("start %s %s: %w: %.500s", program, word, err, said.String())
	}
	return nil
}

// Work reads a job and does it. Its errors are in the store: nobody waits for them.
func Work(in io.Reader, errs io.Writer) (status int) {
	if err := work(in); err != nil {
		fmt.Fprintln(errs, "build template:", err)
		return 1
	}
	return 0
}

func work(in io.Reader) error {
	if os.Getenv("EROFSVM_DETACHED") == "" {
		return detach(in)
	}
	text, err := io.ReadAll(io.LimitReader(in, maxJob))
	if err != nil {
		return err
	}
	var j Job
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("the job on standard input: %w", err)
	}
	if err := yield(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), workTimeout)
	defer cancel()
	_, err = j.Store.Make(ctx, j.Spec)
	return err
}

// detach starts this program once more, in a session of its own, and hands it the
// job.
func detach(in io.Reader) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(in, maxJob))
	if err != nil {
		return err
	}
	// The pipe holds it, so that nobody has to wait until it is read.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, max(len(text), os.Getpagesize())); err != nil {
		return os.NewSyscallError("fcntl(F_SETPIPE_SZ)", err)
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	cmd := exec.Command(self, word)
	cmd.Env, cmd.Dir, cmd.Stdin = []string{detached}, "/", r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start() // and it is an orphan when this process ends
}

// yield leaves processor and memory to others: to every thread that there is, since
// priorities are those of threads on Linux, and to those that come of them.
func yield() error {
	// Of all processes this is the one that is missed the least.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return err
	}
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return err
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, lowest); err != nil && !errors.Is(err, unix.ESRCH) {
			return os.NewSyscallError("setpriority", err)
		}
	}
	return nil
}
