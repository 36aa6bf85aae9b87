package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// atEnd is how long a logging program has to end when its input has.
	atEnd = 2 * time.Second
	// afterTerm is how long it has after SIGTERM, as containerd gives it
	// (cmd/containerd-shim-runc-v2/process/io.go).
	afterTerm = 10 * time.Second
)

// logger is a program of the host that takes the output of a process, by
// containerd's contract for binary:// (core/runtime/v2/logging and
// cmd/containerd-shim-runc-v2/process/io.go there): descriptor 3 is the process's output,
// descriptor 4 its error output, and closing descriptor 5 says that the program
// is ready; with binary-v2:// it says so by a byte. The query of the URI is its
// arguments, CONTAINER_ID and CONTAINER_NAMESPACE are its environment.
type logger struct {
	cmd     *exec.Cmd
	writers [2]*os.File
	done    chan struct{} // closed when it has ended
}

func startLogger(ctx context.Context, uri *url.URL, o Options) (_ *logger, err error) {
	var child []*os.File // ends of the program
	l := &logger{done: make(chan struct{})}
	defer func() {
		for _, f := range child {
			f.Close()
		}
		if err != nil {
			l.closeWriters()
		}
	}()
	for i := range l.writers {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		child, l.writers[i] = append(child, r), w
	}
	ready, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	child = append(child, w)

	l.cmd = exec.Command(uri.Path, arguments(uri.Query())...)
	l.cmd.Env = []string{"CONTAINER_ID=" + o.ID, "CONTAINER_NAMESPACE=" + o.Namespace}
	l.cmd.ExtraFiles = child
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := l.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start logging program: %w", err)
	}
	go func() {
		_ = l.cmd.Wait()
		close(l.done)
	}()
	w.Close() // the program's is the only one now: its end is the end of the pipe
	child = child[:len(child)-1]
	if err := awaitReady(ctx, ready, uri, o.Deadline); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// arguments are the query's, each name followed by its value. A query has no
// order that would survive parsing; here it is that of the names.
func arguments(query url.Values) []string {
	var names, args []string
	for name := range query {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		args = append(args, name)
		if values := query[name]; len(values) > 0 {
			args = append(args, values[0])
		}
	}
	return args
}

func awaitReady(ctx context.Context, ready *os.File, uri *url.URL, deadline time.Duration) error {
	until := time.Now().Add(deadline)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	_ = ready.SetReadDeadline(until)
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := ready.Read(make([]byte, 1))
	switch {
	case n == 1:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("logging program %s: not ready within %s: %w", uri.Path, deadline, context.DeadlineExceeded)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("logging program %s: %w", uri.Path, err)
	case uri.Scheme == "binary-v2":
		return fmt.Errorf("logging program %s ended, or closed descriptor 5, before it was ready: %w", uri.Path, errdefs.ErrUnavailable)
	}
	return nil
}

// output is the pipe of the process's first or second output.
func (l *logger) output(i int) func(context.Context) (io.WriteCloser, error) {
	return func(ctx context.Context) (io.WriteCloser, error) {
		p := &pipe{WriteCloser: l.writers[i], r: io.NopCloser(nil)}
		p.stop = context.AfterFunc(ctx, p.closeBoth)
		return p, nil
	}
}

func (l *logger) closeWriters() {
	for _, w := range l.writers {
		if w != nil {
			w.Close()
		}
	}
}

// close ends the program's input and waits for its end; one that does not come
// is brought about.
func (l *logger) close() {
	l.closeWriters()
	for _, step := range []struct {
		wait time.Duration
		then syscall.Signal
	}{{atEnd, unix.SIGTERM}, {afterTerm, unix.SIGKILL}} {
		select {
		case <-l.done:
			return
		case <-time.After(step.wait):
			_ = l.cmd.Process.Signal(step.then)
		}
	}
	<-l.done
}
