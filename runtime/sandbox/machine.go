package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/hypervisor/template"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
	"github.com/erofsvm/erofsvm/runtime/hostgroup"
	"github.com/erofsvm/erofsvm/runtime/turnstile"
)

// agentPort is the vsock port of the agent (agent-wire.md).
const agentPort = 1024

// seedSize is how many random bytes of the host a guest gets before anything
// of a pod runs in it.
const seedSize = 64

// lastWords is how long a VM whose agent has hung up gets to end by itself, so
// that the error can say why.
const lastWords = 3 * time.Second

// machine is the VM of a sandbox with its agent. Its life is obtain →
// personalise → attach: until it is personalised nothing in it, but for its
// devices, belongs to a pod.
type machine struct {
	cfg configs.Config
	identity
	dir    string // the sandbox's directory
	log    *log.Entry
	trace  *trace
	start  startVM
	lend   lender
	died   func(*machine)
	oom    func(*machine)
	layers layerNames
	net    *podNetwork
	watch  watcher
	group  *hostgroup.Group // nil for none; final once the machine is ready
	empty  emptyDirs
	early  earlyDisks
	wanted *template.Job // a template that there could be

	ctx    context.Context // ends with the VM
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup // goroutines that end with the VM
	mu     sync.Mutex
	ended  bool // by stop, which waits for tasks: no more of them
	// place is that of its start among those of the host, if it has one.
	place    *turnstile.Place
	turnOver bool

	qemuPid atomic.Int64
	ready   chan struct{} // closed when those below are final
	vm      bootedVM      // may be set although err is
	agent   *agentclient.Client
	wire    bool // the agent speaks docs/streams-wire.md
	files   bool // and docs/files-wire.md
	ports   bool // and docs/ports-wire.md
	copies  bool // with its operations on copies
	size    size
	err     error
}

// identity is what makes a VM that of one pod, or of one container.
type identity struct {
	id       string // of the sandbox
	bundle   string // holds the record
	hostname string
	netns    netns
	pod      bool   // there will be containers that have things in common
	cgroup   string // of the host, for all that the sandbox has there; "" for the shim's
	begun    time.Time
	launch   launch // of the shim; zero if that was before another VM
	caller   string // CreateRequest.Caller
}

// startVM is how a VM comes into being: by QEMU, but in tests.
type startVM func(context.Context, qemu.Spec) (bootedVM, error)

// bootedVM is a VM with what only its start knows.
type bootedVM interface {
	hypervisor.VM
	Accelerator() (a qemu.Accelerator, reason string)
	Timings() qemu.Timings
	// Run lets the guest of a VM that goes on from a template run.
	Run(ctx context.Context) error
}

func startQEMU(ctx context.Context, spec qemu.Spec) (bootedVM, error) {
	vm, err := qemu.Start(ctx, spec)
	if err != nil {
		return nil, err // and no interface around a nil
	}
	return vm, nil
}

func newMachine(s *Sandbox, config configs.Config, who identity) *machine {
	ctx, cancel := context.WithCancelCause(context.Background())
	logger := s.log.WithField("sandbox", who.id)
	return &machine{
		cfg: config, identity: who,
		dir:   sandboxDir(config.StateDir, who.bundle),
		log:   logger,
		net:   newPodNetwork(config, logger),
		trace: newTrace(config.Debug.TraceDir, s.namespace, who),
		start: s.start, lend: s.lend, died: s.died, oom: s.watchOOM,
		ctx: ctx, cancel: cancel, ready: make(chan struct{}), early: newEarlyDisks(),
		size: size{turn: make(chan struct{}, 1)},
	}
}

// launch starts the VM's life in a goroutine of its own and returns at once.
func (m *machine) launch() { m.tasks.Go(m.run) }

func (m *machine) run() {
	m.err = m.obtain(m.ctx)
	if m.err == nil {
		m.err = m.personalise(m.ctx)
	}
	close(m.ready)
	if m.err != nil || m.pod {
		m.endTurn() // a pod's containers come later
	}
	if m.err != nil {
		return // Create stops the machine
	}
	m.tasks.Go(m.followLog)
	m.tasks.Go(func() { m.oom(m) })
	m.tasks.Go(func() { m.net.follow(m.ctx, m) })
	m.tasks.Go(m.takePorts)
	m.tasks.Go(m.order)
	<-m.vm.Done()
	if err := m.vm.Err(); err != nil {
		m.log.WithError(err).Error("virtual machine ended")
	}
	m.cancel(hypervisor.ErrGone)
	m.agent.Close()
	m.died(m)
}

// obtain gets a VM whose agent answers, and which is no twin of another one: from a
// template, or booted.
func (m *machine) obtain(ctx context.Context) error {
	preparing := time.Now()
	// With the record, so that there is nothing that Cleanup cannot find.
	if err := m.enterCgroup(ctx); err != nil {
		return err
	}
	if err := makeSandboxDir(m.dir); err != nil {
		return err
	}
	if err := m.net.open(m.netns, m.pod); err != nil {
		return err
	}
	spec, err := m.spec()
	if err != nil {
		return err
	}
	m.trace.phase("prepare", preparing)
	m.takeTurn(ctx)
	there, err := m.goOn(ctx, spec)
	if err != nil || there {
		return err
	}
	started, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.QEMU.Std())
	err = m.startVM(started, spec)
	cancel()
	if err != nil {
		return err
	}
	m.tasks.Go(func() { m.net.plug(ctx, m) })
	if findsEarlyDisks(spec.Initrd) {
		m.tasks.Go(func() { m.plugEarly(ctx) })
	}
	booted, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Agent.Std())
	defer cancel()
	return m.reach(booted, fmt.Sprintf("boot the guest (deadlines.agent = %s)", m.cfg.Deadlines.Agent.Std()))
}

// startVM starts QEMU.
func (m *machine) startVM(ctx context.Context, spec qemu.Spec) error {
	begun := time.Now()
	vm, err := m.start(ctx, spec)
	m.trace.phase("qemu start", begun)
	if err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	m.vm = vm
	accelerator, reason := vm.Accelerator()
	vcpus, mib := vm.Limits()
	m.log.Infof("virtual machine started with %s: %s; it can grow to %d processors and %d MiB", accelerator, reason, vcpus, mib)
	m.trace.set(func(t *traceFile) { t.Accelerator, t.Kernel = string(accelerator), spec.Kernel })
	return nil
}

// reach waits until the agent listens, and makes the guest one of its own.
func (m *machine) reach(ctx context.Context, what string) error {
	if err := m.vm.WaitReady(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	m.trace.timings(m.vm.Timings())
	begun := time.Now()
	conn, err := m.vm.Dial(ctx, agentPort)
	m.trace.phase("agent connect", begun)
	if err != nil {
		return fmt.Errorf("connect to the agent: %w", err)
	}
	call := m.cfg.Deadlines.Call.Std()
	m.agent = agentclient.New(conn, agentclient.Deadlines{
		Query: call, Sandbox: call, Create: m.cfg.Deadlines.Create.Std(),
		Start: call, Signal: call, Remove: call, Copy: call,
	})
	begun = time.Now()
	defer m.trace.phase("make unique", begun)
	return m.makeUnique(ctx)
}

// personalise gives the guest what belongs to this one pod. Nothing of it may be on
// the kernel's command line or in the image.
func (m *machine) personalise(ctx context.Context) error {
	begun := time.Now()
	defer m.trace.phase("personalise", begun)
	if err := m.learn(ctx); err != nil {
		return err
	}
	if err := m.net.configure(ctx, m); err != nil {
		return err
	}
	return m.agent.CreateSandbox(ctx, &pb.CreateSandboxRequest{Hostname: m.hostname, SandboxId: m.id, Storages: m.shared()})
}

// makeUnique comes before everything else, since the guest can be one of several
// that a template was resumed to. An agent that does not have the one call for it
// has those of Kata's.
func (m *machine) makeUnique(ctx context.Context) error {
	seed := make([]byte, seedSize+16)
	rand.Read(seed)
	sample, err := m.agent.Personalise(ctx, agentclient.Personality{
		Entropy: seed[:seedSize], MachineID: hex.EncodeToString(seed[seedSize:]), Time: time.Now(), Hostname: m.hostname,
	})
	m.trace.set(func(t *traceFile) { t.Sample = hex.EncodeToString(sample) })
	if !errdefs.IsNotImplemented(err) {
		return err
	}
	if err := m.agent.Check(ctx); err != nil {
		return err
	}
	if err := m.agent.ReseedRandomDev(ctx, seed[:seedSize]); err != nil {
		return err
	}
	return m.agent.SetGuestDateTime(ctx, time.Now())
}

// shared are the storages that the containers of a pod have in common: their
// /dev/shm, of the size that containerd gives it (pkg/oci/mounts.go).
func (m *machine) shared() []*pb.Storage {
	if !m.pod {
		return nil
	}
	return []*pb.Storage{{
		Driver: "ephemeral", Source: "shm", Fstype: "tmpfs", MountPoint: guestShm,
		Options: []string{"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"},
	}}
}

// learn asks the agent what it and its kernel can. One that tells nothing can
// neither carry streams and files nor take memory.
func (m *machine) learn(ctx context.Context) error {
	details, err := m.agent.GetGuestDetails(ctx)
	if err != nil && !errdefs.IsNotImplemented(err) {
		return err
	}
	features := details.GetAgentDetails().GetExtraFeatures()
	m.wire = slices.Contains(features, streamwire.Feature)
	m.files = slices.Contains(features, streamwire.FilesFeature)
	m.ports = slices.Contains(features, streamwire.PortsFeature)
	m.copies = m.files && slices.Contains(features, streamwire.CopiesFeature)
	m.measure(details.GetMemBlockSizeBytes())
	return nil
}

// spawn starts a goroutine that ends with the VM, unless stop already waits for
// them.
func (m *machine) spawn(task func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return hypervisor.ErrGone
	}
	m.tasks.Go(task)
	return nil
}

// spec is the VM of this pod.
func (m *machine) spec() (qemu.Spec, error) {
	spec, err := specOf(m.cfg)
	if err != nil {
		return qemu.Spec{}, err
	}
	spec.Dir = filepath.Join(m.dir, "vm")
	spec.NICSlots = m.net.slots()
	if m.cfg.Hypervisor.Templates == configs.TemplatesOn {
		spec.NICSlots = nicSlots(m.cfg.Network) // one template for pods with a network and without
	}
	spec.NetNS = m.net.file()
	spec.OnStarted = func(r qemu.Record) error {
		m.qemuPid.Store(int64(r.QEMU.Pid))
		return m.record(&r)
	}
	return spec, nil
}

// specOf translates the configuration.
func specOf(c configs.Config) (qemu.Spec, error) {
	h := c.Hypervisor
	largest := most(h, hostSize())
	binary, err := lookUp("hypervisor.path", h.Path)
	if err != nil {
		return qemu.Spec{}, err
	}
	daemon := ""
	if kind := vsock.Kind(c.Vsock.Backend); kind != vsock.Kernel {
		// Whether it is needed is for the hypervisor to find out.
		if daemon, err = lookUp("vsock.device_path", c.Vsock.DevicePath); err != nil && kind == vsock.VhostUser {
			return qemu.Spec{}, err
		}
	}
	virtiofsd, err := virtiofsdPath(c.Mounts)
	if err != nil {
		return qemu.Spec{}, err
	}
	return qemu.Spec{
		CacheDir:     filepath.Join(c.CacheDir, "host"),
		Binary:       binary,
		Machine:      h.Machine,
		Accelerator:  qemu.Accelerator(h.Accelerator),
		VCPUs:        h.VCPUs,
		MemoryMiB:    h.MemoryMiB,
		MaxVCPUs:     largest.VCPUs,
		MaxMemoryMiB: largest.MemoryMiB,
		Kernel:       c.Guest.Kernel,
		Initrd:       c.Guest.Initrd,
		KernelParams: strings.Fields(c.Guest.KernelParams),
		DiskSlots:    h.Slots,
		BlockDriver:  qemu.BlockDriver(h.BlockDriver),
		AIO:          qemu.AIO(h.AIO),
		CacheDirect:  h.Cache == configs.CacheNone,
		IOThreads:    h.IOThreads,
		Reclaim:      h.Reclaim,
		Vsock:        vsock.Kind(c.Vsock.Backend),
		VsockDaemon:  daemon,
		Virtiofsd:    virtiofsd,
	}, nil
}

func lookUp(key, name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("%s = %q: %w", key, name, err)
	}
	return path, nil
}

// await waits until the VM can take containers.
func (m *machine) await(ctx context.Context) error {
	select {
	case <-m.ready:
		if m.err == nil && m.ctx.Err() != nil {
			return fmt.Errorf("the virtual machine has ended: %w", hypervisor.ErrGone)
		}
		return m.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the virtual machine: %w", context.Cause(ctx))
	}
}

// alive says whether the VM came up and has not ended.
func (m *machine) alive() bool {
	select {
	case <-m.ready:
		return m.err == nil && m.ctx.Err() == nil
	default:
		return false
	}
}

func (m *machine) pid() int { return int(m.qemuPid.Load()) }

// explain adds to an error of Create what its text alone does not say: that
// somebody killed the container, or that the VM died meanwhile.
func (m *machine) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errAbandoned) && !errors.Is(err, errAbandoned) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	if !errors.Is(err, agentclient.ErrConnection) {
		return err
	}
	// The connection breaks before a dying QEMU is gone.
	select {
	case <-m.vm.Done():
		if vmErr := m.vm.Err(); vmErr != nil {
			return fmt.Errorf("%w: %w", err, vmErr)
		}
	case <-time.After(lastWords):
		m.abort(err)
	}
	return err
}

// abort ends a VM that cannot be used any more; run sees it end.
func (m *machine) abort(cause error) {
	if !m.alive() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.cfg.Deadlines.Stop.Std())
	defer cancel()
	if err := m.vm.Kill(ctx); err != nil {
		m.log.WithError(err).Errorf("end the virtual machine after: %v", cause)
	}
}

// stop ends the VM in whatever state it is, and removes the sandbox's
// directory and its record. It may be called more than once.
func (m *machine) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Stop.Std())
	defer cancel()
	begun := time.Now()
	m.settle(ctx)
	m.cancel(context.Canceled) // a boot under way returns
	select {
	case <-m.ready:
	case <-ctx.Done():
		return fmt.Errorf("give up the boot: %w", ctx.Err())
	}
	if m.agent != nil {
		m.agent.Close()
	}
	if m.vm != nil {
		if err := m.vm.Kill(ctx); err != nil {
			return fmt.Errorf("end QEMU: %w", err) // the record stays, for Cleanup
		}
	}
	m.mu.Lock()
	m.ended = true
	m.mu.Unlock()
	if err := waitFor(ctx, &m.tasks); err != nil {
		return fmt.Errorf("goroutines of the virtual machine: %w", err)
	}
	if err := errors.Join(m.net.close(), m.leaveCgroup(ctx)); err != nil {
		return err // as above
	}
	m.trace.phase("stop", begun)
	if err := removeSandboxDir(m.dir); err != nil {
		return err
	}
	return removeRecord(m.bundle)
}

func waitFor(ctx context.Context, wg *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
