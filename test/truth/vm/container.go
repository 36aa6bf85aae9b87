package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/fifo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/runtime/sandbox"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// Container is one container of the VM. Delete must be called.
type Container struct {
	ID     string
	vm     *VM
	dir    string
	stdin  io.WriteCloser
	stdout output
	stderr output
}

// output is one stream, read until its end by a goroutine of its own.
type output struct {
	mu    sync.Mutex
	bytes bytes.Buffer
	fifo  io.ReadCloser
	ended chan struct{}
}

// Result is how a container that was run to its end came out.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Run creates a container, starts it, waits for its end and deletes it.
func (v *VM) Run(ctx context.Context, mounts []rootfs.Mount, args ...string) (Result, error) {
	c, err := v.Create(ctx, mounts, args...)
	if err != nil {
		return Result{}, err
	}
	result, err := c.run(ctx)
	return result, errors.Join(err, c.Delete(ctx))
}

func (c *Container) run(ctx context.Context) (Result, error) {
	if err := c.Start(ctx); err != nil {
		return Result{}, err
	}
	return c.Wait(ctx)
}

// Create makes a container whose root filesystem the mounts are. The first one
// boots the VM. It has every capability, may use every device, and has of the
// usual mounts those over /proc and /dev only. Its standard input is open until CloseStdin.
func (v *VM) Create(ctx context.Context, mounts []rootfs.Mount, args ...string) (_ *Container, err error) {
	c := &Container{ID: "c" + strconv.FormatInt(v.serial.Add(1), 10), vm: v}
	c.dir = filepath.Join(v.dir, c.ID)
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.release())
		}
	}()
	if err := writeSpec(ctx, c.dir, c.ID, args); err != nil {
		return nil, err
	}
	streams := stdio.Paths{
		Stdin: filepath.Join(c.dir, "stdin"), Stdout: filepath.Join(c.dir, "stdout"), Stderr: filepath.Join(c.dir, "stderr"),
	}
	if err := c.open(streams); err != nil {
		return nil, err
	}
	_, err = v.sandbox.Create(ctx, &sandbox.CreateRequest{
		ID: c.ID, Bundle: c.dir, Rootfs: mounts, Streams: streams, Config: v.Config,
	})
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	return c, nil
}

// open makes the fifos and reads the outputs.
func (c *Container) open(p stdio.Paths) (err error) {
	// Opened for both, it waits for nobody; the other end is the runtime's.
	if err := unix.Mkfifo(p.Stdin, 0o600); err != nil {
		return err
	}
	if c.stdin, err = os.OpenFile(p.Stdin, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	return errors.Join(c.stdout.read(p.Stdout), c.stderr.read(p.Stderr))
}

func (o *output) read(path string) (err error) {
	o.fifo, err = fifo.OpenFifo(context.Background(), path, unix.O_RDONLY|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	o.ended = make(chan struct{})
	go func() {
		defer close(o.ended)
		buffer := make([]byte, 64<<10)
		for {
			n, err := o.fifo.Read(buffer)
			o.mu.Lock()
			o.bytes.Write(buffer[:n])
			o.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes.String()
}

// close ends the reading, whatever is left to read.
func (o *output) close() error {
	if o.fifo == nil {
		return nil
	}
	err := o.fifo.Close()
	<-o.ended
	return err
}

// Start lets the container's process run.
func (c *Container) Start(ctx context.Context) error {
	_, err := c.vm.sandbox.Start(ctx, c.ID, "")
	return err
}

// Stdout is what the process has written so far.
func (c *Container) Stdout() string { return c.stdout.String() }

// CloseStdin ends the process's standard input, at both ends that keep it open.
func (c *Container) CloseStdin() error {
	return errors.Join(c.stdin.Close(), c.vm.sandbox.CloseStdin(c.ID, ""))
}

// Wait waits for the end of the process and of its output.
func (c *Container) Wait(ctx context.Context) (Result, error) {
	exit, err := c.vm.sandbox.Wait(ctx, c.ID, "")
	if err != nil {
		return Result{}, err
	}
	for _, o := range []*output{&c.stdout, &c.stderr} {
		select {
		case <-o.ended:
		case <-ctx.Done():
			return Result{}, fmt.Errorf("output of container %s: %w", c.ID, ctx.Err())
		}
	}
	return Result{Code: exit.Status, Stdout: c.stdout.String(), Stderr: c.stderr.String()}, nil
}

// Delete ends the container, whatever it does, and removes what Create made;
// with the last one ends the virtual machine.
func (c *Container) Delete(ctx context.Context) error {
	info, err := c.vm.sandbox.Info(c.ID, "")
	if err == nil && info.State == sandbox.Running {
		if err = c.vm.sandbox.Kill(ctx, c.ID, "", syscall.SIGKILL, false); err == nil {
			_, err = c.vm.sandbox.Wait(ctx, c.ID, "")
		}
	}
	if err == nil {
		_, err = c.vm.sandbox.Delete(ctx, c.ID, "")
	}
	return errors.Join(err, c.release())
}

func (c *Container) release() error {
	var errs []error
	if c.stdin != nil {
		if err := c.stdin.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, c.stdout.close(), c.stderr.close(), os.RemoveAll(c.dir))...)
}

// writeSpec writes config.json as containerd's client would.
func writeSpec(ctx context.Context, bundle, id string, args []string) error {
	ctx = namespaces.WithNamespace(ctx, "test")
	spec, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: id},
		oci.WithProcessArgs(args...), oci.WithPrivileged, oci.WithAllDevicesAllowed, func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination != "/proc" && m.Destination != "/dev" })
			s.Root.Readonly = false
			return nil
		})
	if err != nil {
		return err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600)
}
