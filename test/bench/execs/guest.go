package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
	"github.com/erofsvm/erofsvm/test/harness"
)

// containerID names the one container, and with it the sandbox.
const containerID = "execs"

// pumpPath is where the container has the program pump.
const pumpPath = "/pump"

// guest is a VM with one container that does nothing, twice: as clients of
// containerd see it, and as the shim does, on a connection to the agent.
type guest struct {
	c           *harness.Containerd
	accelerator string
	container   client.Container
	task        client.Task
	process     *specs.Process
	agent       *agentclient.Client
	parts       parts
	serial      int
}

func startGuest(ctx context.Context, tree harness.Tree, c *harness.Containerd, imageName string) (_ *guest, err error) {
	outer := ctx
	ctx, cancel := context.WithTimeout(c.Context(ctx), boot)
	defer cancel()
	pump, err := buildPump(ctx, tree, c)
	if err != nil {
		return nil, err
	}
	g := &guest{c: c}
	image, err := c.Client().GetImage(ctx, imageName)
	if err != nil {
		return nil, err
	}
	// The guest's pid namespace, so that an exec can look at the agent, whose
	// descriptors only somebody with all its capabilities may count.
	g.container, err = c.Client().NewContainer(ctx, containerID,
		client.WithImage(image), client.WithSnapshotter(harness.Snapshotter), client.WithNewSnapshot(containerID, image),
		client.WithRuntime(harness.Runtime, &runtimeoptions.Options{ConfigPath: c.ShimConfigPath()}),
		client.WithNewSpec(oci.WithDefaultSpec(), oci.WithImageConfig(image), oci.WithProcessArgs(pumpPath, "wait"),
			oci.WithHostNamespace(specs.PIDNamespace), oci.WithAllKnownCapabilities,
			oci.WithMounts([]specs.Mount{{Type: "bind", Source: pump, Destination: pumpPath, Options: []string{"bind", "ro"}}})))
	if err != nil {
		return nil, err
	}
	if g.task, err = g.container.NewTask(ctx, cio.NullIO); err != nil {
		return nil, err
	}
	if err := g.task.Start(ctx); err != nil {
		return nil, err
	}
	spec, err := g.container.Spec(ctx)
	if err != nil {
		return nil, err
	}
	g.process = spec.Process
	trace, err := c.Trace(containerID)
	if err != nil {
		return nil, err
	}
	g.accelerator = trace.Accelerator
	conn, err := g.dial(outer, vsock.PortAgent)
	if err != nil {
		return nil, err
	}
	g.agent = agentclient.New(conn, agentclient.Deadlines{})
	g.parts, err = findParts(c)
	return g, err
}

func buildPump(ctx context.Context, tree harness.Tree, c *harness.Containerd) (string, error) {
	path := filepath.Join(c.Dir(), "pump")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./test/bench/execs/pump")
	build.Dir = tree.Root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build pump: %w\n%s", err, text)
	}
	return path, nil
}

func (g *guest) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(g.c.Context(ctx)), step)
	defer cancel()
	closed := g.agent.Close()
	_, err := g.task.Delete(ctx, client.WithProcessKill)
	return errors.Join(closed, err, g.container.Delete(ctx, client.WithSnapshotCleanup))
}

// dial connects to a vsock port of the guest through the sandbox's socket, which
// there is with vhost-device-vsock alone. The connection ends with ctx.
func (g *guest) dial(ctx context.Context, port uint32) (net.Conn, error) {
	sockets, err := filepath.Glob(filepath.Join(g.c.SandboxDir(), "*", "vm", "vsock.sock"))
	if err != nil {
		return nil, err
	}
	if len(sockets) != 1 {
		return nil, fmt.Errorf("%d sockets of vhost-device-vsock below %s: this part needs one, as with vsock.backend = \"vhost-user\"", len(sockets), g.c.SandboxDir())
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", sockets[0])
	if err != nil {
		return nil, err
	}
	if err := connect(conn, port); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to vsock port %d: %w", port, err), conn.Close())
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, nil
}

// connect asks vhost-device-vsock for a port: "CONNECT <port>", "OK <port>".
func connect(conn net.Conn, port uint32) error {
	if err := conn.SetDeadline(time.Now().Add(step)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	var line []byte
	for one := make([]byte, 1); len(line) < 32 && !strings.HasSuffix(string(line), "\n"); line = append(line, one[0]) {
		if _, err := io.ReadFull(conn, one); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return fmt.Errorf("the answer is %q", line)
	}
	return conn.SetDeadline(time.Time{})
}

func (g *guest) newID() string {
	g.serial++
	return "e" + strconv.Itoa(g.serial)
}

// running is an exec by way of containerd and the shim.
type running struct {
	client.Process
	exit <-chan client.ExitStatus
}

// exec starts a process. ctx must have containerd's namespace, and lasts until the
// process has ended.
func (g *guest) exec(ctx context.Context, streams cio.Creator, args ...string) (*running, error) {
	process := *g.process
	process.Args = args
	p, err := g.task.Exec(ctx, g.newID(), &process, streams)
	if err != nil {
		return nil, err
	}
	r := &running{Process: p}
	if r.exit, err = p.Wait(ctx); err == nil {
		err = p.Start(ctx)
	}
	if err != nil {
		_, deleted := p.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
		return nil, errors.Join(err, deleted)
	}
	return r, nil
}

// finish waits for the end, which must be a good one, and deletes the process.
func (r *running) finish(ctx context.Context) error {
	select {
	case status := <-r.exit:
		code, _, err := status.Result()
		if err == nil && code != 0 {
			err = fmt.Errorf("exec %s: exit code %d", r.ID(), code)
		}
		_, deleted := r.Delete(ctx)
		return errors.Join(err, deleted)
	case <-ctx.Done():
		return fmt.Errorf("exec %s has not ended: %w", r.ID(), ctx.Err())
	}
}

// kill ends a process that would not end by itself.
func (r *running) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), step)
	defer cancel()
	if err := r.Kill(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	<-r.exit
	_, err := r.Delete(ctx)
	return err
}

// output runs a process to its end and returns what it prints.
func (g *guest) output(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(g.c.Context(ctx), step)
	defer cancel()
	var out, problems strings.Builder
	r, err := g.exec(ctx, cio.NewCreator(cio.WithStreams(nil, &out, &problems)), args...)
	if err != nil {
		return "", err
	}
	if err := r.finish(ctx); err != nil {
		return "", fmt.Errorf("%w: %.300s", err, problems.String())
	}
	return out.String(), nil
}

// direct starts a process by a call of the agent, of which the shim knows nothing.
func (g *guest) direct(ctx context.Context, args ...string) (agentclient.Process, error) {
	p := agentclient.Process{Container: containerID, Exec: g.newID()}
	return p, g.agent.ExecProcess(ctx, &pb.ExecProcessRequest{ContainerId: p.Container, ExecId: p.Exec, Process: &pb.Process{
		Args: args, Env: g.process.Env, Cwd: "/", User: &pb.User{},
	}})
}

// ended waits for the end of such a process, which must be a good one.
func (g *guest) ended(ctx context.Context, p agentclient.Process) error {
	code, err := g.agent.WaitProcess(ctx, p)
	if err == nil && code != 0 {
		err = fmt.Errorf("exec %s: exit code %d", p.Exec, code)
	}
	return err
}
