package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

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
var identifier = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)
})

const maxIdentifier = 128 // bytes

func isIdentifier(id string) bool { return len(id) <= maxIdentifier && identifier().MatchString(id) }

// Create makes a container, and the VM if this is the first one: the way of
// one `ctr run` up to the point where the process waits for Start. It returns
// the pid of QEMU. On an error nothing of the container is left, and no VM if
// it was alone; but if nobody hears of it, the container stays as one that has
// ended, until it is deleted.
func (s *Sandbox) Create(ctx context.Context, req *CreateRequest) (pid int, err error) {
	begun := req.Arrived
	if begun.IsZero() {
		begun = time.Now()
	}
	ctx, abandon := context.WithCancelCause(ctx)
	defer abandon(nil)
	spec, err := readSpec(req.Bundle)
	if err != nil {
		return 0, err
	}
	of, err := s.member(req.ID, spec)
	if err != nil {
		return 0, err
	}
	of.complete(spec)
	guest, err := convert(spec, req, of)
	if err != nil {
		return 0, err
	}
	volumes, err := takeEmptyDirs(&guest, req.Config.Mounts)
	if err != nil {
		return 0, err
	}
	files, err := openHostFiles(guest.Copies, req.Config.Mounts)
	if err != nil {
		return 0, err
	}
	defer files.close()
	for _, d := range guest.Dropped {
		s.log.WithField("container", req.ID).Warnf("not for the guest: %s", d)
	}
	c, m, err := s.admit(req, spec, guest, of, begun, func() { abandon(errAbandoned) })
	if err != nil {
		return 0, err
	}
	m.trace.phase("spec", begun)
	defer m.endTurn()
	defer func() {
		if err != nil {
			err = m.explain(ctx, err)
			m.trace.started(m.dir, c.id, err)
			s.undo(ctx, c, m, req)
		}
	}()

	if c.virtual == nil {
		err = s.build(ctx, c, m, req, guest, files, volumes)
	} else {
		err = s.stand(ctx, c, m)
	}
	if err != nil {
		return 0, err
	}
	connecting := time.Now()
	output, err := m.streams(ctx, c.init)
	if err != nil {
		return 0, err
	}
	c.init.stdio().Start(output)
	if err := s.runHooks(ctx, c, m, guest.Hooks.Create, specs.StateCreating); err != nil {
		return 0, err
	}
	pid = m.pid()
	if err := c.created(ctx, func() { s.sink.Created(req, pid) }); err != nil {
		return 0, err
	}
	if err := m.spawn(func() { s.watch(c.init, m) }); err != nil {
		return 0, err
	}
	m.trace.phase("streams", connecting)
	m.trace.phase("create", begun)
	return pid, nil
}

// build makes a container in the guest.
func (s *Sandbox) build(ctx context.Context, c *container, m *machine, req *CreateRequest, guest guestspec.Result, files hostFiles, volumes []wantedDir) error {
	// While the VM boots:
	plan, err := m.plan(ctx, req.Rootfs)
	if err != nil {
		return err
	}
	defer plan.Close() // QEMU has its own descriptors by then
	m.offer(ctx, c, plan)
	defer m.early.collect(c) // before the plan is closed
	if err := s.openStreams(ctx, c.init, m); err != nil {
		return err
	}

	if err := m.await(ctx); err != nil {
		return err
	}
	if err := s.grow(ctx, m); err != nil {
		// Its limits bind all the same, to what there is.
		s.log.WithField("container", req.ID).WithError(err).Warn("the virtual machine is smaller than its containers' limits")
	}
	storages, there, err := m.early.collect(c)
	if !there {
		storages, err = m.attach(ctx, c, plan)
	}
	if err != nil {
		return err
	}
	volumesBegun := time.Now()
	devices, err := m.attachBlocks(ctx, c, guest.Blocks)
	if err != nil {
		return err
	}
	inPod, err := m.giveEmptyDirs(ctx, volumes, s.limits())
	if err != nil {
		return err
	}
	m.openMessages(c, guest.Copies)
	shared, err := files.give(ctx, m, c)
	if err != nil {
		return err
	}
	if err := m.forward(ctx, c, guest.Sockets); err != nil {
		return err
	}
	m.trace.phase("volumes", volumesBegun)
	created := time.Now()
	c.inGuest = true // even a create that failed may have left something
	err = m.agent.CreateContainer(ctx, &pb.CreateContainerRequest{
		ContainerId: req.ID, ExecId: req.ID, Storages: slices.Concat(storages, inPod, shared), Devices: devices, OCI: guest.Spec, SandboxPidns: guest.PodPID,
	})
	m.trace.phase("container create", created)
	if err != nil {
		return fmt.Errorf("create container %s in the guest: %w", req.ID, err)
	}
	m.follow(c)
	return nil
}

// stand makes a container that only stands for the pod: it has a VM, and nothing
// in it.
func (s *Sandbox) stand(ctx context.Context, c *container, m *machine) error {
	if err := s.openStreams(ctx, c.init, m); err != nil {
		return err
	}
	return m.await(ctx)
}

func (s *Sandbox) openStreams(ctx context.Context, p *process, m *machine) error {
	streams, err := stdio.Open(ctx, p.streams, s.streamOptions(p, m))
	if err != nil {
		return err
	}
	p.setStdio(streams)
	return nil
}

// convert makes the guest's spec. Whether there is a terminal is for the request
// to say, as for runc's shim.
func convert(spec *specs.Spec, req *CreateRequest, of membership) (guestspec.Result, error) {
	guest, err := guestspec.Convert(spec, guestspec.Options{
		Bundle: req.Bundle, Rootfs: guestRootfs(req.ID), Copies: guestCopies(req.ID), Shares: guestShares(req),
		PassHooks: req.Config.Guest.Hooks == "pass", CgroupV1: cgroups.Mode() != cgroups.Unified, Pod: of.guest(),
	})
	if err != nil {
		return guest, err
	}
	guest.Spec.Process.Terminal = req.Streams.Terminal
	if of.virtual(req) {
		guest.Copies, guest.Sockets, guest.Blocks = nil, nil, nil // nobody would see them
	}
	return guest, nil
}

// virtual says whether the container of the request only stands for its pod.
func (b membership) virtual(req *CreateRequest) bool {
	return b.infra && req.Config.Guest.Pause == "virtual"
}

// reserved are names that the guest has for other things beside containers.
var reserved = []string{"sandbox", "shared"}

// admit takes a container in, with the VM that it is to run in.
func (s *Sandbox) admit(req *CreateRequest, spec *specs.Spec, guest guestspec.Result, of membership, begun time.Time, abandon context.CancelFunc) (*container, *machine, error) {
	if !isIdentifier(req.ID) || slices.Contains(reserved, req.ID) {
		return nil, nil, fmt.Errorf("container id %q: %w", req.ID, errdefs.ErrInvalidArgument)
	}
	c := newContainer(req.ID, req.Bundle, req.Streams, abandon)
	c.hooks, c.annotations, c.infra = guest.Hooks, spec.Annotations, of.infra
	if of.virtual(req) {
		c.virtual = newVirtual(s.PodStats)
	} else {
		c.limits = guest.Spec.GetLinux().GetResources()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.containers[req.ID]; ok {
		return nil, nil, fmt.Errorf("container %s: %w", req.ID, errdefs.ErrAlreadyExists)
	}
	switch {
	case s.machine == nil && (of.pod == nil || of.infra):
		cfg, err := configFor(req.Config, spec.Annotations)
		if err != nil {
			return nil, nil, err
		}
		s.machine = newMachine(s, cfg, identity{
			id: req.ID, bundle: req.Bundle, hostname: spec.Hostname, netns: netnsOf(spec), pod: of.infra, begun: begun,
			cgroup: cgroupOf(spec),
			launch: s.takeLaunch(), caller: req.Caller,
		})
		s.pod = of.pod
		s.machine.launch()
	case s.pod != of.pod:
		return nil, nil, fmt.Errorf("container %s: its pod came or went meanwhile: %w", req.ID, errdefs.ErrFailedPrecondition)
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
