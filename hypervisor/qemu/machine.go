package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qmp"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

const (
	// startTimeout bounds a Start, readyTimeout a WaitReady and detachTimeout a
	// Detach whose context has no earlier deadline.
	startTimeout  = time.Minute
	readyTimeout  = 30 * time.Minute
	detachTimeout = time.Minute
	// unplugsAtOnce is how many PCI devices the guest is asked to eject at a time.
	unplugsAtOnce = 8
	// undoTimeout bounds what undoes a start or ends a VM: it must happen
	// after the caller's context has ended, too.
	undoTimeout = 10 * time.Second
)

// Timings are the phases of a start. A phase not reached is zero.
type Timings struct {
	Probe time.Duration // what the host can do; next to nothing if cached
	Vsock time.Duration // the vsock device with its daemon
	Exec  time.Duration // until QEMU's process exists
	QMP   time.Duration // from there until QEMU answers on its monitor
	Load  time.Duration // what was saved read, and the vsock device plugged in
	Ready time.Duration // from QEMU's process until the agent listens
}

// Machine is a VM run by QEMU. It is made by Start.
type Machine struct {
	spec   Spec
	accel  accelChoice
	aio    AIO
	proc   *process
	vsock  vsock.Device
	record Record
	execed time.Time // QEMU's process exists

	events *qmp.Subscription
	heard  chan struct{} // closed when the last event has been read
	done   chan struct{}
	tasks  sync.WaitGroup // what goes on after a call has returned
	// unplugging holds an item for each call that waits for the guest to eject a
	// PCI device. A channel, so that waiting for room ends with the caller's
	// context.
	unplugging chan struct{}
	// serving holds an item while the daemon of a share is started.
	serving chan struct{}
	failed  chan error // holds the first reason to end the VM that a task has found
	growth  growth
	ram     *ramCopy // during the start of a VM whose memory is a copy

	mu      sync.Mutex // guards what follows; never held over I/O
	timings Timings
	slots   slots
	// shareSlots are those of shares where disks are not plugged into slots.
	shareSlots slots
	disks      map[string]*disk
	shares     map[string]*share
	nicSlots   slots
	nics       map[string]*nic
	vectors    int    // disks with interrupts of their own
	lastSet    int64  // the number of a descriptor set that was given last
	ended      bool   // tasks takes no more
	killed     bool   // by Kill, so that the end is no error
	shutdown   string // reason of QEMU's SHUTDOWN event
	broken     error  // what made the supervisor end the VM
	err        error  // for Err; set before done is closed
	undoErr    error  // what could not be undone; set before done is closed
}

var _ hypervisor.VM = (*Machine)(nil)

// Start boots a VM and returns when QEMU answers; the guest is still booting
// then, and disks may be attached. An error that wraps ErrSpec was found before
// anything was made. After an error no process, socket or file is left; it
// holds the tail of the guest's console and of QEMU's output.
//
// ctx bounds the start alone: the VM lives on until Kill, or until it ends by
// itself. The first start on a host whose /dev/kvm opens can take some seconds
// longer, see Spec.CacheDir.
func Start(ctx context.Context, spec Spec) (*Machine, error) {
	spec = spec.withDefaults()
	if err := spec.validate(); err != nil {
		return nil, err
	}
	switch spec.role() {
	case template:
		spec.generation = noGeneration
	case resumes:
		spec.generation = newGeneration()
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	m := &Machine{
		spec:       spec,
		heard:      make(chan struct{}),
		done:       make(chan struct{}),
		slots:      newSlots(0, spec.DiskSlots, errNoDiskSlot),
		shareSlots: newSlots(0, spec.shareSlots(), errNoShareSlot),
		nicSlots:   newSlots(spec.firstNICSlot(), spec.NICSlots, errNoNICSlot),
		disks:      map[string]*disk{},
		shares:     map[string]*share{},
		nics:       map[string]*nic{},

		serving: make(chan struct{}, 1), failed: make(chan error, 1),
		unplugging: make(chan struct{}, unplugsAtOnce),
		growth:     newGrowth(spec),
	}
	if err := m.start(ctx); err != nil {
		return nil, fmt.Errorf("start virtual machine: %w", err)
	}
	return m, nil
}

// start goes up step by step; an error undoes the steps taken, in reverse.
func (m *Machine) start(ctx context.Context) (err error) {
	began := time.Now()
	phase := func(d *time.Duration) {
		now := time.Now()
		*d, began = now.Sub(began), now
	}
	if err := makeDir(m.spec.Dir); err != nil {
		return err
	}
	supervised := false
	defer func() {
		if err != nil && !supervised {
			err = errors.Join(err, m.undo())
		}
	}()

	if m.accel = m.spec.decided; m.accel.Accelerator == "" {
		if m.accel, err = chooseAccelerator(ctx, m.spec); err != nil {
			return err
		}
	}
	m.spec = m.spec.settled(m.accel.Accelerator)
	if m.aio, err = chooseAIO(ctx, m.spec); err != nil {
		return err
	}
	phase(&m.timings.Probe)

	memory, err := m.memoryFile(wiringOf(m.spec.Vsock.Resolve()))
	if err != nil {
		return err
	}
	defer func() { m.ram.close() }()
	said := newLineSeen(templateReady)
	if m.vsock, err = m.openVsock(ctx, said); err != nil {
		return err
	}
	phase(&m.timings.Vsock)

	wiring := m.vsock.Wiring()
	m.growth.shared = sharedMemory(m.spec, wiring)
	m.proc, err = launchIn(m.spec.NetNS, said, m.spec.Binary, argv(m.spec, m.accel.Accelerator, wiring), wiring.File, memory)
	m.vsock.Release()
	if err != nil {
		return err
	}
	m.execed = time.Now()
	phase(&m.timings.Exec)

	m.record = Record{QEMU: m.proc.child.Identity(), Dir: m.spec.Dir}
	if daemon := m.vsock.Daemon(); daemon != nil {
		m.record.VsockDaemon = daemon.Identity()
	}
	m.events = m.proc.monitor.Subscribe("DEVICE_DELETED", "SHUTDOWN")
	go m.listen()
	go m.supervise()
	supervised = true
	defer func() {
		if err != nil {
			err = m.abandon(ctx, err)
		}
	}()
	if m.spec.OnStarted != nil {
		if err := m.spec.OnStarted(m.record); err != nil {
			return fmt.Errorf("record the virtual machine's processes: %w", err)
		}
	}
	if err := m.proc.handshake(ctx); err != nil {
		return err
	}
	phase(&m.timings.QMP)
	if m.spec.role() == resumes {
		if err := m.resume(ctx); err != nil {
			return err
		}
		phase(&m.timings.Load)
	}
	log.G(ctx).WithFields(log.Fields{
		"pid": m.Pid(), "qemu": m.proc.monitor.Version().String(), "accelerator": m.accel.Accelerator,
		"reason": m.accel.Reason, "aio": m.aio, "vsock": wiring.Kind,
		"max_vcpus": m.spec.MaxVCPUs, "max_memory_mib": m.spec.MaxMemoryMiB,
	}).Debug("QEMU answers")
	return nil
}

// openVsock makes the VM's vsock device, or what stands for it in a template.
func (m *Machine) openVsock(ctx context.Context, console *lineSeen) (vsock.Device, error) {
	if m.spec.role() == template || m.spec.mute {
		return noVsock{m.spec.Vsock.Resolve(), console}, nil
	}
	return vsock.Open(ctx, vsock.Config{Kind: m.spec.Vsock, Daemon: m.spec.VsockDaemon, Dir: m.spec.Dir})
}

// abandon ends a VM whose start failed with cause.
func (m *Machine) abandon(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := m.Kill(ctx)
	return errors.Join(fmt.Errorf("%w%s", cause, m.proc.tails()), err)
}

// listen takes QEMU's events until the monitor ends.
func (m *Machine) listen() {
	defer close(m.heard)
	for e := range m.events.Events() {
		switch e.Event {
		case "DEVICE_DELETED":
			// Events of the device's children have a path and no name.
			if name, ok := e.Data["device"].(string); ok {
				m.deleted(name)
			}
		case "SHUTDOWN":
			reason, _ := e.Data["reason"].(string)
			m.mu.Lock()
			m.shutdown = reason
			m.mu.Unlock()
		}
	}
}

// supervise waits for the end of the VM, whoever brings it about, and leaves
// nothing of it behind.
func (m *Machine) supervise() {
	defer close(m.done)
	var daemonDone <-chan struct{}
	if daemon := m.vsock.Daemon(); daemon != nil {
		daemonDone = daemon.Done()
	}
	var broken error
	select {
	case <-m.proc.child.Done():
	case broken = <-m.failed:
	case <-daemonDone:
		// The guest can be reached no more, and nothing can bring it back.
		broken = fmt.Errorf("vhost-device-vsock ended: %s: %s", exitReason(m.vsock.Daemon().Err()), m.vsock.Diagnosis())
	}
	if broken != nil {
		m.mu.Lock()
		m.broken = broken
		m.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
		_ = m.proc.child.Kill(ctx)
		cancel()
	}
	m.proc.wait()
	<-m.heard
	m.mu.Lock()
	m.ended = true
	m.mu.Unlock()
	m.tasks.Wait() // short: the monitor has ended
	undoErr := m.undo()

	m.mu.Lock()
	defer m.mu.Unlock()
	m.undoErr = undoErr
	if !m.killed {
		m.err = fmt.Errorf("%w: %s%s", hypervisor.ErrGone, m.cause(), m.proc.tails())
	}
}

// cause says why QEMU ended. The caller holds m.mu.
func (m *Machine) cause() string {
	switch {
	case m.broken != nil:
		return m.broken.Error()
	case m.shutdown == "guest-reset":
		return "the guest's kernel panicked or rebooted"
	case m.shutdown == "guest-shutdown":
		return "the guest powered itself off"
	case m.shutdown != "":
		return fmt.Sprintf("QEMU shut down (%s)", m.shutdown)
	}
	return "QEMU ended: " + exitReason(m.proc.child.Err())
}

// undo removes what start made apart from QEMU.
func (m *Machine) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	errs := m.closeShares(ctx)
	if m.vsock != nil {
		errs = append(errs, m.vsock.Close(ctx))
	}
	return errors.Join(append(errs, removeDir(m.spec.Dir))...)
}

// Pid implements hypervisor.VM.
func (m *Machine) Pid() int { return m.record.QEMU.Pid }

// Record is what Spec.OnStarted was given last.
func (m *Machine) Record() Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.record
	for _, s := range m.shares {
		r.Shares = append(r.Shares, s.daemon.Identity())
	}
	return r
}

// Done implements hypervisor.VM.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err implements hypervisor.VM.
func (m *Machine) Err() error {
	select {
	case <-m.done:
	default:
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Tail implements hypervisor.VM.
func (m *Machine) Tail() string { return m.proc.tails() }

// Timings are the phases of the start so far.
func (m *Machine) Timings() Timings {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.timings
}

// Accelerator says what runs the guest's instructions and why, for the log.
func (m *Machine) Accelerator() (accel Accelerator, reason string) {
	return m.accel.Accelerator, m.accel.Reason
}

// Kill implements hypervisor.VM. Its error says what is left behind.
func (m *Machine) Kill(ctx context.Context) error {
	m.mu.Lock()
	select {
	case <-m.done: // it ended by itself, and Err keeps saying so
	default:
		m.killed = true
	}
	m.mu.Unlock()
	if err := m.proc.child.Kill(ctx); err != nil {
		return err
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the virtual machine: %w", context.Cause(ctx))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.undoErr
}

// WaitReady implements hypervisor.VM.
func (m *Machine) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	err := m.whileRunning(ctx, m.vsock.WaitReady)
	if errors.Is(err, hypervisor.ErrGone) {
		return err // has the tails
	}
	if err != nil {
		return fmt.Errorf("wait until the guest is ready: %w%s", err, m.proc.tails())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timings.Ready == 0 {
		m.timings.Ready = time.Since(m.execed)
	}
	return nil
}

// Dial implements hypervisor.VM.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	var conn net.Conn
	err := m.whileRunning(ctx, func(ctx context.Context) (err error) {
		conn, err = m.vsock.Dial(ctx, port)
		return err
	})
	return conn, err
}

// whileRunning calls f with a context that ends with the VM, too. An error is
// about the end of the VM then, whatever f made of it.
func (m *Machine) whileRunning(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-m.proc.child.Done():
			cancel(hypervisor.ErrGone)
		case <-ctx.Done():
		}
	}()
	err := f(ctx)
	cancel(nil)
	<-watching
	if err == nil {
		return nil
	}
	select {
	case <-m.proc.child.Done():
	default:
		return err
	}
	<-m.done // bounded by undoTimeout
	if why := m.Err(); why != nil {
		return why
	}
	return fmt.Errorf("%w: it was killed", hypervisor.ErrGone)
}
