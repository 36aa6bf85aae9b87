package qemu

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qmp"
)

// ErrTooLarge is wrapped when a VM is asked to become larger than it can.
var ErrTooLarge = errors.New("virtual machine cannot become so large")

const (
	memoryBlockMiB = hypervisor.MemoryBlockMiB

	// memorySlots is how often memory can be plugged in. A vhost-user daemon
	// knows 8 regions of memory unless it says that it knows more
	// (docs/interop/vhost-user.rst, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS),
	// which vhost-device-vsock does not, and QEMU needs up to 3 for what the VM
	// boots with. Each slot is also a device for the guest to look at.
	memorySlots = 5

	// growTimeout bounds a call whose context has no earlier deadline.
	growTimeout = 2 * time.Minute
)

// disguise makes a guest of TCG believe that VMware runs it. Linux takes
// processors that are not there at the start for pluggable ones only under a
// hypervisor that it knows, and TCG is none (arch/x86/kernel/acpi/boot.c,
// acpi_is_processor_usable, as of 2026 and in the stable kernels of that year:
// "Unable to map lapic to logical cpu number"). But it knows VMware by a serial
// number and a port, which QEMU has too.
var disguise = []string{
	"-cpu", cpu(AcceleratorTCG) + ",hypervisor=off",
	"-machine", "vmport=on",
	"-smbios", "type=1,serial=VMware-0",
}

// growth is what a VM has become. The one call that makes it larger holds turn,
// a channel so that no lock is held over a command; shared is written before
// there can be one.
type growth struct {
	turn   chan struct{}
	shared bool // with a vhost-user daemon

	vcpus, memoryMiB int
	dimms            []string // devices, in the order in which they were plugged in
	backends         int      // made so far, so that no name is used twice
	untaken          bool     // the guest may not have taken the last memory yet
}

func newGrowth(s Spec) growth {
	return growth{turn: make(chan struct{}, 1), vcpus: s.VCPUs, memoryMiB: s.MemoryMiB}
}

// Limits implements hypervisor.VM. Under TCG no processors can be added: the
// guest's Linux passes over them (see disguise).
func (m *Machine) Limits() (vcpus, memoryMiB int) {
	return m.spec.MaxVCPUs, m.spec.MaxMemoryMiB
}

// AddCPUs implements hypervisor.VM.
func (m *Machine) AddCPUs(ctx context.Context, total int) (vcpus int, err error) {
	err = m.grow(ctx, func(ctx context.Context, g *growth) error {
		err := m.addCPUs(ctx, g, total)
		vcpus = g.vcpus
		return err
	})
	if err != nil {
		return vcpus, fmt.Errorf("plug in processors up to %d: %w", total, gone(err))
	}
	return vcpus, nil
}

// AddMemory implements hypervisor.VM. With the last slots for memory it plugs in
// more than was asked for, so that they suffice.
func (m *Machine) AddMemory(ctx context.Context, totalMiB int) (memoryMiB int, err error) {
	err = m.grow(ctx, func(ctx context.Context, g *growth) error {
		err := m.addMemory(ctx, g, totalMiB)
		memoryMiB = g.memoryMiB
		return err
	})
	if err != nil {
		return memoryMiB, fmt.Errorf("plug in memory up to %d MiB: %w", totalMiB, gone(err))
	}
	return memoryMiB, nil
}

// grow has do called while no other call changes the size.
func (m *Machine) grow(ctx context.Context, do func(context.Context, *growth) error) error {
	ctx, cancel := context.WithTimeout(ctx, growTimeout)
	defer cancel()
	select {
	case m.growth.turn <- struct{}{}:
		defer func() { <-m.growth.turn }()
		return do(ctx, &m.growth)
	case <-ctx.Done():
		return fmt.Errorf("wait for another call that makes it larger: %w", context.Cause(ctx))
	}
}

// pluggable is a processor, or the place for one (qapi/machine.json,
// HotpluggableCPU).
type pluggable struct {
	Type  string         `json:"type"`
	Count int            `json:"vcpus-count"`
	Props map[string]any `json:"props"`
	Path  string         `json:"qom-path"` // of the processor that is there
}

func (m *Machine) addCPUs(ctx context.Context, g *growth, total int) error {
	switch {
	case total <= g.vcpus:
		return nil
	case total > m.spec.MaxVCPUs && m.accel.Accelerator == AcceleratorTCG && !m.spec.disguised:
		return fmt.Errorf("%w: it begins with hypervisor.vcpus = %d, and without KVM its kernel takes no more", ErrTooLarge, m.spec.VCPUs)
	case total > m.spec.MaxVCPUs:
		return fmt.Errorf("%w: raise hypervisor.max_vcpus, which is %d", ErrTooLarge, m.spec.MaxVCPUs)
	}
	// Asked each time: a command whose answer did not come in time may have been
	// executed.
	var all []pluggable
	if err := m.proc.monitor.Execute(ctx, "query-hotpluggable-cpus", nil, &all); err != nil {
		return err
	}
	g.vcpus = 0
	var free []pluggable
	for _, p := range slices.Backward(all) { // QEMU begins with the last one
		if p.Path == "" {
			free = append(free, p)
		} else {
			g.vcpus += p.Count
		}
	}
	for _, p := range free {
		if g.vcpus >= total {
			break
		}
		device := map[string]any{"driver": p.Type, "id": fmt.Sprintf("cpu-%d", g.vcpus)}
		maps.Copy(device, p.Props)
		if err := m.proc.monitor.Execute(ctx, "device_add", device, nil); err != nil {
			return err
		}
		g.vcpus += p.Count
	}
	return nil
}

func (m *Machine) addMemory(ctx context.Context, g *growth, totalMiB int) error {
	if totalMiB > m.spec.MaxMemoryMiB {
		return fmt.Errorf("%w: raise hypervisor.max_memory_mib, which allows %d MiB", ErrTooLarge, m.spec.MaxMemoryMiB)
	}
	answers := m.proc.monitor.Subscribe("ACPI_DEVICE_OST")
	defer answers.Close()
	if totalMiB > g.memoryMiB {
		size := dimmMiB(g.memoryMiB, totalMiB, m.spec.MaxMemoryMiB, memorySlots-len(g.dimms))
		if err := m.plugMemory(ctx, g, size); err != nil {
			return err
		}
	}
	if !g.untaken {
		return nil
	}
	for {
		taken, err := m.memoryTaken(ctx, g)
		if err != nil {
			return err
		}
		if taken {
			g.untaken = false
			return nil
		}
		select {
		case <-answers.Events():
		case <-m.proc.monitor.Done():
			return m.proc.monitor.Err()
		case <-ctx.Done():
			return fmt.Errorf("wait until the guest takes it: %w", context.Cause(ctx))
		}
	}
}

// dimmMiB is how much to plug into one of the slots that are left, so that a VM
// of have MiB comes to want. The last but one doubles the VM and the last takes
// what there can be, so that no want finds every slot taken.
func dimmMiB(have, want, most, slots int) int {
	more := want - have
	switch {
	case slots <= 1:
		more = most - have
	case slots == 2:
		more = max(more, have)
	}
	more = (more + memoryBlockMiB - 1) / memoryBlockMiB * memoryBlockMiB
	return min(more, most-have)
}

// plugMemory plugs a memory device into the VM. After an error nothing of it is
// left, or it is plugged in: the command may have been executed all the same.
func (m *Machine) plugMemory(ctx context.Context, g *growth, mib int) error {
	backend, device := fmt.Sprintf("plugged-%d", g.backends), fmt.Sprintf("dimm-%d", g.backends)
	g.backends++
	object := map[string]any{"qom-type": backendType(g.shared), "id": backend, "size": int64(mib) << 20}
	if g.shared {
		object["share"] = true
	}
	err := m.proc.monitor.Execute(ctx, "object-add", object, nil)
	if refused(err) {
		return err
	}
	plugged := false
	if err == nil {
		err = m.proc.monitor.Execute(ctx, "device_add", map[string]any{"driver": "pc-dimm", "id": device, "memdev": backend}, nil)
		plugged = err == nil
	}
	if refused(err) {
		err = fmt.Errorf("%w (raise hypervisor.memory_mib, so that less has to be plugged in)", err)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		var undoErr error
		if plugged, undoErr = m.undoMemory(undo, backend, device); undoErr != nil && !errors.Is(undoErr, qmp.ErrClosed) {
			err = errors.Join(err, fmt.Errorf("roll back: %w", undoErr))
		}
	}
	if plugged {
		g.dimms = append(g.dimms, device)
		g.memoryMiB += mib
		g.untaken = true
	}
	return err
}

// undoMemory removes a backend, unless the device is there, which cannot go
// without the guest's consent.
func (m *Machine) undoMemory(ctx context.Context, backend, device string) (plugged bool, err error) {
	var devices []struct {
		Data struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := m.proc.monitor.Execute(ctx, "query-memory-devices", nil, &devices); err != nil {
		return false, err
	}
	for _, d := range devices {
		if d.Data.ID == device {
			return true, nil
		}
	}
	err = m.proc.monitor.Execute(ctx, "object-del", map[string]any{"id": backend}, nil)
	if refused(err) {
		return false, nil // it was not made
	}
	return false, err
}

// What a guest answers to a device that appears (ACPI 6.5, 6.3.5, _OST).
const (
	ostPending  = 0    // as source: nothing yet
	ostSuccess  = 0    // as status
	ostProgress = 0x80 // as status: insertion in progress
)

// memoryTaken says whether the guest has taken all that was plugged in. It can say
// what it likes, and harms nobody but itself.
func (m *Machine) memoryTaken(ctx context.Context, g *growth) (bool, error) {
	var answers []struct {
		Device string `json:"device"`
		Slot   string `json:"slot"`
		Source int64  `json:"source"`
		Status int64  `json:"status"`
	}
	if err := m.proc.monitor.Execute(ctx, "query-acpi-ospm-status", nil, &answers); err != nil {
		return false, err
	}
	taken := 0
	for _, a := range answers {
		if !slices.Contains(g.dimms, a.Device) || a.Source == ostPending || a.Status == ostProgress {
			continue
		}
		if a.Status != ostSuccess {
			return false, fmt.Errorf("the guest refuses the memory in slot %s (_OST status %#x)", a.Slot, a.Status)
		}
		taken++
	}
	return taken == len(g.dimms), nil
}
