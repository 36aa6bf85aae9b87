package e2etest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/test/harness"
)

// Spec says what to run.
type Spec struct {
	Image string
	Args  []string
	Stdin io.Reader // nil: none
	// Config is the shim's configuration; empty is the harness's.
	Config string
	// Rootfs replaces the mounts that the snapshotter prepares.
	Rootfs []mount.Mount
	Opts   []oci.SpecOpts
}

// Container is a container with a task. Its methods are for the goroutine of
// the test.
type Container struct {
	ID     string
	Task   client.Task
	Stdout *Buffer
	Stderr *Buffer

	bed       *Bed
	container client.Container
	exit      <-chan client.ExitStatus
}

// Buffer collects a stream. It may be read while it is written.
type Buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
	grew chan struct{}
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.grew != nil {
		close(b.grew)
		b.grew = nil
	}
	return b.data.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

// WaitFor waits until the stream contains a text.
func (b *Buffer) WaitFor(t *testing.T, text string) {
	t.Helper()
	b.WaitForWithin(t, text, Step)
}

// WaitForWithin is WaitFor for a text that may take its time.
func (b *Buffer) WaitForWithin(t *testing.T, text string, d time.Duration) {
	t.Helper()
	deadline := time.After(d)
	for {
		b.mu.Lock()
		found := strings.Contains(b.data.String(), text)
		if b.grew == nil {
			b.grew = make(chan struct{})
		}
		grew := b.grew
		b.mu.Unlock()
		if found {
			return
		}
		select {
		case <-grew:
		case <-deadline:
			t.Fatalf("waited %v for %q; there is:\n%s", d, text, b)
		}
	}
}

var (
	serial   atomic.Int64
	unusable = regexp.MustCompile(`[^a-zA-Z0-9]+`)
)

// newID names a container after the test.
func newID(t *testing.T) string {
	name := strings.Trim(unusable.ReplaceAllString(t.Name(), "-"), "-")
	return fmt.Sprintf("%.60s-%d", name, serial.Add(1))
}

// Create makes a container and its task and returns the error of the latter.
// When the test is over both are removed.
func (b *Bed) Create(t *testing.T, s Spec) (*Container, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.Context(t.Context()), Boot)
	defer cancel()
	c := &Container{ID: newID(t), Stdout: &Buffer{}, Stderr: &Buffer{}, bed: b}
	c.make(ctx, t, s)
	t.Cleanup(func() { c.remove(t) })

	streams := []cio.Opt{cio.WithStreams(s.Stdin, c.Stdout, c.Stderr)}
	var opts []client.NewTaskOpts
	if s.Rootfs != nil {
		opts = append(opts, client.WithRootFS(s.Rootfs))
	}
	task, err := c.container.NewTask(ctx, cio.NewCreator(streams...), opts...)
	if err != nil {
		return c, err
	}
	c.Task = task
	// Not the context of Create: the wait lasts as long as the task.
	if c.exit, err = task.Wait(b.Context(context.WithoutCancel(t.Context()))); err != nil {
		t.Fatalf("wait for %s: %v", c.ID, err)
	}
	return c, nil
}

func (c *Container) make(ctx context.Context, t *testing.T, s Spec) {
	t.Helper()
	image, err := c.bed.Client().GetImage(ctx, s.Image)
	if err != nil {
		t.Fatalf("image %s: %v", s.Image, err)
	}
	spec := []oci.SpecOpts{oci.WithDefaultSpec(), oci.WithDefaultUnixDevices}
	opts := []client.NewContainerOpts{
		client.WithImage(image),
		client.WithSnapshotter(harness.Snapshotter),
		client.WithRuntime(harness.Runtime, &runtimeoptions.Options{ConfigPath: or(s.Config, c.bed.ShimConfigPath())}),
	}
	if s.Rootfs == nil {
		opts = append(opts, client.WithNewSnapshot(c.ID, image))
		spec = append(spec, oci.WithImageConfig(image))
	}
	if len(s.Args) > 0 {
		spec = append(spec, oci.WithProcessArgs(s.Args...))
	}
	opts = append(opts, client.WithNewSpec(append(spec, s.Opts...)...))
	if c.container, err = c.bed.Client().NewContainer(ctx, c.ID, opts...); err != nil {
		t.Fatalf("container %s: %v", c.ID, err)
	}
}

// remove kills and deletes what the test has not.
func (c *Container) remove(t *testing.T) {
	ctx, cancel := context.WithTimeout(c.bed.Context(context.Background()), Step)
	defer cancel()
	if c.Task != nil {
		if _, err := c.Task.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("delete task %s: %v", c.ID, err)
		}
		c.Task = nil
	}
	if c.container != nil {
		if err := c.container.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("delete container %s: %v", c.ID, err)
		}
		c.container = nil
	}
}

// Start makes a container and starts it.
func (b *Bed) Start(t *testing.T, s Spec) *Container {
	t.Helper()
	c, err := b.Create(t, s)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	ctx, cancel := context.WithTimeout(b.Context(t.Context()), Step)
	defer cancel()
	if err := c.Task.Start(ctx); err != nil {
		t.Fatalf("start: %v", err)
	}
	return c
}

// Run runs a container to its end and deletes it.
func (b *Bed) Run(t *testing.T, s Spec) (c *Container, code uint32) {
	t.Helper()
	c = b.Start(t, s)
	code = c.WaitExit(t)
	c.Delete(t)
	return c, code
}

// WaitExit waits until the process has ended and returns its code.
func (c *Container) WaitExit(t *testing.T) uint32 {
	t.Helper()
	return c.WaitExitWithin(t, Boot)
}

// WaitExitWithin is WaitExit for a process that takes its time.
func (c *Container) WaitExitWithin(t *testing.T, d time.Duration) uint32 {
	t.Helper()
	select {
	case status := <-c.exit:
		code, _, err := status.Result()
		if err != nil {
			t.Fatalf("wait for %s: %v", c.ID, err)
		}
		return code
	case <-time.After(d):
		t.Fatalf("%s does not end; stdout:\n%s\nstderr:\n%s", c.ID, c.Stdout, c.Stderr)
		return 0
	}
}

// Kill signals the container's process.
func (c *Container) Kill(t *testing.T, signal syscall.Signal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.bed.Context(t.Context()), Step)
	defer cancel()
	if err := c.Task.Kill(ctx, signal); err != nil {
		t.Fatalf("kill %s with %v: %v", c.ID, signal, err)
	}
}

// Delete deletes the task, which waits for the streams, and the container.
func (c *Container) Delete(t *testing.T) *client.ExitStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.bed.Context(t.Context()), Step)
	defer cancel()
	status, err := c.Task.Delete(ctx)
	if err != nil {
		t.Fatalf("delete task %s: %v", c.ID, err)
	}
	c.Task = nil
	c.remove(t)
	return status
}

// CtrRun runs `ctr run --rm` with the shim to its end, the way a person does.
// args are the flags, the image, the id and the command.
func (b *Bed) CtrRun(t *testing.T, stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Boot)
	defer cancel()
	cmd := b.Ctr(ctx, append([]string{"run", "--rm", "--runtime", harness.Runtime,
		"--runtime-config-path", b.ShimConfigPath(), "--snapshotter", harness.Snapshotter}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errs.String(), exit.ExitCode()
	}
	if err != nil {
		t.Fatalf("ctr run %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), errs.String(), 0
}

// Adopt makes the container use handles that another client has loaded, after
// containerd was restarted; nil for what is removed by now.
func (c *Container) Adopt(container client.Container, task client.Task) {
	c.container, c.Task = container, task
}
