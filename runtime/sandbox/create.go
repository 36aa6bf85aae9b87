package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// guestRoot is where the agent keeps containers, as Kata's does.
const guestRoot = "/run/kata-containers"

// maxSpec bounds config.json, in bytes.
const maxSpec = 8 << 20

// identifier is what containerd accepts as an id; here it becomes a path in
// the guest.
var identifier = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// Create makes a container, and the VM if this is the first one: the way of
// one `ctr run` up to the point where the process waits for Start. It returns
// the pid of QEMU. On an error nothing of the container is left, and no VM if
// it was alone.
func (s *Sandbox) Create(ctx context.Context, req *CreateRequest) (pid int, err error) {
	begun := time.Now()
	ctx, abandon := context.WithCancelCause(ctx)
	defer abandon(nil)
	spec, err := readSpec(req.Bundle)
	if err != nil {
		return 0, err
	}
	guest, err := guestspec.Convert(spec, guestRootfs(req.ID))
	if err != nil {
		return 0, err
	}
	for _, d := range guest.Dropped {
		s.log.WithField("container", req.ID).Warnf("not for the guest: %s", d)
	}
	c, m, err := s.admit(req, spec.Hostname, begun, func() { abandon(errAbandoned) })
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = m.explain(ctx, err)
			s.dismantle(ctx, c, m)
		}
	}()

	// While the VM boots:
	plan, err := m.plan(ctx, req.Rootfs)
	if err != nil {
		return 0, err
	}
	defer plan.Close() // QEMU has its own descriptors by then
	streams, err := stdio.Open(req.Streams, func(err error) { s.log.WithError(err).WithField("container", req.ID).Warn("stream") })
	if err != nil {
		return 0, err
	}
	c.setStdio(streams)

	if err := m.await(ctx); err != nil {
		return 0, err
	}
	storages, err := m.attach(ctx, c, plan)
	if err != nil {
		return 0, err
	}
	created := time.Now()
	c.inGuest = true // even a create that failed may have left something
	err = m.agent.CreateContainer(ctx, &pb.CreateContainerRequest{
		ContainerId: req.ID, ExecId: req.ID, Storages: storages, OCI: guest.Spec,
	})
	m.trace.phase("container create", created)
	if err != nil {
		return 0, fmt.Errorf("create container %s in the guest: %w", req.ID, err)
	}
	pid = m.pid()
	s.sink.Created(req, pid)
	c.created()
	streams.Start(guestStreams{m.agent, agentclient.Process{Container: req.ID}})
	m.tasks.Go(func() { s.watch(c, m) })
	m.trace.phase("create", begun)
	return pid, nil
}

// admit takes a container in, with the VM that it is to run in.
func (s *Sandbox) admit(req *CreateRequest, hostname string, begun time.Time, abandon context.CancelFunc) (*container, *machine, error) {
	if !identifier.MatchString(req.ID) {
		return nil, nil, fmt.Errorf("container id %q: %w", req.ID, errdefs.ErrInvalidArgument)
	}
	c := newContainer(req.ID, req.Bundle, req.Streams, abandon)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.containers[req.ID]; ok {
		return nil, nil, fmt.Errorf("container %s: %w", req.ID, errdefs.ErrAlreadyExists)
	}
	if s.machine == nil {
		s.machine = newMachine(s, req, hostname, begun)
		s.machine.launch()
	}
	s.serial++
	c.dir = filepath.Join(s.machine.dir, "c"+strconv.Itoa(s.serial))
	c.serial = s.serial
	s.containers[req.ID] = c
	return c, s.machine, nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	path := filepath.Join(bundle, "config.json")
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("OCI spec: %w", err)
	}
	if info.Size() > maxSpec {
		return nil, fmt.Errorf("OCI spec %s: %d bytes are more than %d: %w", path, info.Size(), maxSpec, errdefs.ErrInvalidArgument)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("OCI spec: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("OCI spec %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

func guestRootfs(id string) string { return guestRoot + "/" + id + "/rootfs" }

// guestStreams is a process of the guest as package stdio sees it.
type guestStreams struct {
	agent   *agentclient.Client
	process agentclient.Process
}

func (g guestStreams) ReadStdout(ctx context.Context, buf []byte) (int, error) {
	return g.agent.ReadStdout(ctx, g.process, buf)
}

func (g guestStreams) ReadStderr(ctx context.Context, buf []byte) (int, error) {
	return g.agent.ReadStderr(ctx, g.process, buf)
}

func (g guestStreams) WriteStdin(ctx context.Context, data []byte) (int, error) {
	return g.agent.WriteStdin(ctx, g.process, data)
}

func (g guestStreams) CloseStdin(ctx context.Context) error {
	return g.agent.CloseStdin(ctx, g.process)
}
