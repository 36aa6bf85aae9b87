package e2etest

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Exec is a process beside a container's own.
type Exec struct {
	Process        client.Process
	Stdout, Stderr *Buffer

	c    *Container
	exit <-chan client.ExitStatus
}

// Process is that of the container's spec with other arguments.
func (c *Container) Process(t *testing.T, args ...string) *specs.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.bed.Context(t.Context()), Step)
	defer cancel()
	spec, err := c.container.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	spec.Process.Args = args
	return spec.Process
}

// Exec adds a process to the container and starts it. The error is that of the
// start. When the test is over the process is deleted.
func (c *Container) Exec(t *testing.T, stdin io.Reader, process *specs.Process, more ...cio.Opt) (*Exec, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.bed.Context(t.Context()), Step)
	defer cancel()
	e := &Exec{Stdout: &Buffer{}, Stderr: &Buffer{}, c: c}
	streams := append([]cio.Opt{cio.WithStreams(stdin, e.Stdout, e.Stderr)}, more...)
	var err error
	if e.Process, err = c.Task.Exec(ctx, newID(t), process, cio.NewCreator(streams...)); err != nil {
		t.Fatalf("add an exec: %v", err)
	}
	t.Cleanup(func() { e.remove(t) })
	if e.exit, err = e.Process.Wait(c.bed.Context(context.WithoutCancel(t.Context()))); err != nil {
		t.Fatalf("wait for an exec: %v", err)
	}
	return e, e.Process.Start(ctx)
}

// RunExec runs a command in the container to its end.
func (c *Container) RunExec(t *testing.T, args ...string) (stdout, stderr string, code uint32) {
	t.Helper()
	e, err := c.Exec(t, nil, c.Process(t, args...))
	if err != nil {
		t.Fatalf("exec %q: %v", args, err)
	}
	code = e.WaitExit(t)
	e.remove(t)
	return e.Stdout.String(), e.Stderr.String(), code
}

// WaitExit waits until the process has ended and returns its code.
func (e *Exec) WaitExit(t *testing.T) uint32 {
	t.Helper()
	select {
	case status := <-e.exit:
		code, _, err := status.Result()
		if err != nil {
			t.Fatalf("wait for an exec: %v", err)
		}
		return code
	case <-time.After(Boot):
		t.Fatalf("the exec does not end; stdout:\n%s\nstderr:\n%s", e.Stdout, e.Stderr)
		return 0
	}
}

// Adopt makes the exec use the handle that another client has loaded, after
// containerd was restarted; nil if it is deleted by now.
func (e *Exec) Adopt(p client.Process) { e.Process = p }

// remove kills and deletes the process, unless that is done.
func (e *Exec) remove(t *testing.T) {
	if e.Process == nil {
		return
	}
	ctx, cancel := context.WithTimeout(e.c.bed.Context(context.Background()), Step)
	defer cancel()
	if _, err := e.Process.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("delete exec %s: %v", e.Process.ID(), err)
	}
	e.Process = nil
}
