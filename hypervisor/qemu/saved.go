package qemu

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"sync"

	"github.com/erofsvm/erofsvm/hypervisor/internal/child"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// A VM can be booted once, saved, and gone on with in any number of others. The guest
// that is saved has its memory in a file, which is left out of what QEMU writes of it
// ("x-ignore-shared"). Those that go on map that file: they read nothing, and have in
// common what none of them writes to. Where a daemon needs a guest's memory
// (sharedMemory) that cannot be, and each has a copy of it, made while its QEMU starts.
//
// A vsock device cannot be saved, since a daemon has a part of its state. So a
// template has none; whoever goes on from it gets one plugged in.

// ErrNotSavable is wrapped when VMs cannot be saved or gone on with here.
var ErrNotSavable = errors.New("virtual machines cannot be saved")

// oldestSaving is the first QEMU that has "exit-on-error".
var oldestSaving = release{9, 1}

// noGeneration is the generation of every template.
const noGeneration = "00000000-0000-0000-0000-000000000000"

// templateReady is the line that the guest image writes to its console when it has
// no vsock device and nothing left to do; guest/layout.TemplateReady.
const templateReady = "erofsvm-agent: this guest can be a template"

// role is how a VM begins.
type role int

const (
	boots    role = iota // and runs
	template             // boots, to be saved
	resumes              // goes on from what was saved
)

func (s Spec) role() role {
	switch {
	case s.saving:
		return template
	case s.From.State != nil:
		return resumes
	}
	return boots
}

// Saved is a saved VM, or where one is to be written. The files stay the caller's.
type Saved struct {
	State *os.File
	// Memory must be on a disk: on a tmpfs every page would be there for good that a VM
	// only looks at.
	Memory *os.File
}

// newGeneration is a version 4 UUID, by which the guest's kernel knows that it has
// become another one (vmgenid).
func newGeneration() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Save boots a VM of spec until its guest has nothing left to do, and writes it to
// files that are open for that, the one of memory for reading, too. Nothing of the VM
// is left then. The guest must be one that is content without a vsock device, as that
// of guest/image is.
func Save(ctx context.Context, spec Spec, to Saved) (err error) {
	spec.saving, spec.into, spec.From, spec.NetNS, spec.OnStarted = true, to.Memory, Saved{}, nil, nil
	m, err := Start(ctx, spec)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, m.Kill(ctx))
	}()
	if err := m.WaitReady(ctx); err != nil {
		return err
	}
	if err := m.save(ctx, to.State); err != nil {
		return fmt.Errorf("save virtual machine: %w%s", gone(err), m.proc.tails())
	}
	if err := digHoles(to.Memory); err != nil {
		return fmt.Errorf("save virtual machine: %w", err)
	}
	return nil
}

func (m *Machine) save(ctx context.Context, to *os.File) error {
	if err := m.proc.monitor.Execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	return m.migrate(ctx, "migrate", to, nil)
}

// load reads what was saved into a QEMU that waits for it.
func (m *Machine) load(ctx context.Context) error {
	own, err := reopen(m.spec.From.State, false, false)
	if err != nil {
		return err
	}
	defer own.Close()
	// Otherwise QEMU would end, and take the reason with it.
	return m.migrate(ctx, "migrate-incoming", own, map[string]any{"exit-on-error": false})
}

// migrate has QEMU write to a file or read from it, and waits until it has done so.
func (m *Machine) migrate(ctx context.Context, command string, file *os.File, options map[string]any) error {
	ends := m.proc.monitor.Subscribe("MIGRATION")
	defer ends.Close()
	capabilities := []map[string]any{{"capability": "x-ignore-shared", "state": true}, {"capability": "events", "state": true}}
	if err := m.proc.monitor.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": capabilities}, nil); err != nil {
		return err
	}
	m.mu.Lock()
	m.lastSet++
	set := m.lastSet
	m.mu.Unlock()
	if err := m.proc.monitor.ExecuteWithFile(ctx, "add-fd", map[string]any{"fdset-id": set}, nil, file); err != nil {
		return err
	}
	arguments := map[string]any{"uri": fmt.Sprintf("file:/dev/fdset/%d", set)}
	maps.Copy(arguments, options)
	if err := m.proc.monitor.Execute(ctx, command, arguments, nil); err != nil {
		return err
	}
	for {
		select {
		case event, open := <-ends.Events():
			if !open {
				return m.proc.monitor.Err()
			}
			switch event.Data["status"] {
			case "completed":
				return m.proc.monitor.Execute(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil)
			case "failed", "cancelled":
				return m.whyNot(ctx, command)
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", command, context.Cause(ctx))
		}
	}
}

// whyNot asks for the reason of a failed migration.
func (m *Machine) whyNot(ctx context.Context, command string) error {
	var info struct {
		Error string `json:"error-desc"`
	}
	if err := m.proc.monitor.Execute(ctx, "query-migrate", nil, &info); err != nil {
		return fmt.Errorf("%s failed: %w", command, err)
	}
	return fmt.Errorf("%s failed: %s", command, info.Error)
}

// resume makes a VM that goes on from a template complete; its guest does not run yet.
func (m *Machine) resume(ctx context.Context) error {
	// A device looks at the guest's memory when its state is loaded (hw/virtio/virtio.c,
	// virtio_load).
	if err := m.ram.wait(ctx); err != nil {
		return err
	}
	if err := m.load(ctx); err != nil {
		return fmt.Errorf("load %s: %w", m.spec.From.State.Name(), err)
	}
	if m.spec.mute {
		return nil
	}
	device := vsockPlugged(m.vsock.Wiring(), m.spec.vsockSlot())
	if err := m.proc.monitor.Execute(ctx, "device_add", device, nil); err != nil {
		return fmt.Errorf("plug in the vsock device: %w", err)
	}
	return nil
}

// Run lets the guest of a VM that goes on from a template run; any other's runs
// since the start. What is plugged in before is found at once by the guest, which
// needs about as long for one device as for several.
func (m *Machine) Run(ctx context.Context) error {
	if m.spec.role() != resumes {
		return nil
	}
	if err := m.proc.monitor.Execute(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("let the guest run: %w", gone(err))
	}
	return nil
}

// memoryFile is what the guest's memory is in, nil where QEMU has it to itself. A copy
// that has begun is m.ram.
func (m *Machine) memoryFile(wiring vsock.Wiring) (file *os.File, err error) {
	file = m.spec.into
	if m.spec.role() == resumes {
		file = m.spec.From.Memory
	}
	if m.spec.role() != boots && file == nil {
		return nil, fmt.Errorf("%w: there is no file of the guest's memory", ErrNotSavable)
	}
	if m.spec.role() == resumes && sharedMemory(m.spec, wiring) {
		if m.ram, err = copyRAM(file, int64(m.spec.MemoryMiB)<<20); err != nil {
			return nil, fmt.Errorf("memory of the guest: %w", err)
		}
		file = m.ram.file
	}
	return file, nil
}

// noVsock stands for the vsock device of a template, which has none: what its guest
// has to say comes by the console.
type noVsock struct {
	kind vsock.Kind // of those that go on from it
	said *lineSeen
}

func (noVsock) Release()                    {}
func (noVsock) Daemon() *child.Process      { return nil }
func (noVsock) Diagnosis() string           { return "" }
func (noVsock) Close(context.Context) error { return nil }
func (n noVsock) Wiring() vsock.Wiring      { return wiringOf(n.kind) }
func (n noVsock) WaitReady(ctx context.Context) error {
	select {
	case <-n.said.seen:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the guest has not said %q on its console: %w", templateReady, context.Cause(ctx))
	}
}

func (noVsock) Dial(context.Context, uint32) (net.Conn, error) {
	return nil, fmt.Errorf("a template has no vsock device: %w", ErrNotSavable)
}

// wiringOf is what of a vsock device the rest of the machine depends on.
func wiringOf(kind vsock.Kind) vsock.Wiring {
	return vsock.Wiring{Kind: kind, SharedMemory: kind.SharedMemory()}
}

// lineSeen is an io.Writer that notices a line.
type lineSeen struct {
	want string
	last []byte // line that is not complete
	once sync.Once
	seen chan struct{} // closed when the line came
}

func newLineSeen(want string) *lineSeen { return &lineSeen{want: want, seen: make(chan struct{})} }

func (l *lineSeen) Write(p []byte) (int, error) {
	for b := range bytes.SplitAfterSeq(p, []byte("\n")) {
		// More than the line that is waited for is of no interest.
		l.last = append(l.last, b[:min(len(b), max(0, len(l.want)+2-len(l.last)))]...)
		if !bytes.HasSuffix(b, []byte("\n")) {
			continue
		}
		if string(bytes.TrimRight(l.last, "\r\n")) == l.want {
			l.once.Do(func() { close(l.seen) })
		}
		l.last = l.last[:0]
	}
	return len(p), nil
}
