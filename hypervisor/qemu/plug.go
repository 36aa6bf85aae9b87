package qemu

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/erofsvm/erofsvm/hypervisor/qmp"
)

// plug is a device that has a slot, from before the first command about it until
// after the last one.
type plug struct {
	name  string // QEMU's for the device
	where string // for an error
	slot  slot
	// pci: the guest unplugs it by ACPI.
	pci bool
	// ready is when the slot may be used.
	ready time.Time
	// turn is held by the one call that changes the device. A channel, so that
	// waiting for it ends with the caller's context, and so that no lock is
	// held over a command.
	turn chan struct{}
	// deleted is closed by QEMU's DEVICE_DELETED.
	deleted chan struct{}
	// there says whether QEMU has the device, as far as it is known, and plugged
	// that it was there for certain. Guarded by turn.
	there, plugged bool
	// requested: QEMU was told to unplug the device.
	requested *atomic.Bool
}

// newPlug returns a device whose turn the caller has.
func newPlug(name, where string, s slot, ready time.Time) plug {
	p := plug{
		name: name, where: where, slot: s, ready: ready, pci: true,
		turn: make(chan struct{}, 1), deleted: make(chan struct{}), requested: &atomic.Bool{},
	}
	p.turn <- struct{}{}
	return p
}

// await takes the turn.
func (p *plug) await(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another call about it: %w", context.Cause(ctx))
	}
}

// release gives the turn back.
func (p *plug) release() { <-p.turn }

// rest waits until the slot of p may be used. Without a slot that has been free
// for long, that takes at most slotRest.
func (m *Machine) rest(ctx context.Context, p *plug) error {
	wait := time.Until(p.ready)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-m.proc.monitor.Done():
		return m.proc.monitor.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait until the slot of %s, given back just now, may be used: %w", p.where, context.Cause(ctx))
	}
}

// unplug asks the guest to let go of the device, if it is there, and waits until
// it has. The caller has the turn.
//
// Only a few PCI devices go at a time: at each event the guest is told again of
// all that are to go, so that its work grows with their square (see slotRest).
func (m *Machine) unplug(ctx context.Context, p *plug) error {
	if !p.there {
		return nil
	}
	if p.pci {
		select {
		case m.unplugging <- struct{}{}:
			defer func() { <-m.unplugging }()
		case <-m.proc.monitor.Done():
			return m.proc.monitor.Err()
		case <-ctx.Done():
			return fmt.Errorf("wait until the guest lets go of another device: %w", context.Cause(ctx))
		}
	}
	asked := p.requested.Swap(true)
	err := m.proc.monitor.Execute(ctx, "device_del", map[string]any{"id": p.name}, nil)
	switch {
	case err == nil:
	case qmp.IsClass(err, qmp.ClassDeviceNotFound):
		if !p.plugged {
			p.unplugged()
			return nil
		}
		// It has a name no more, and QEMU may still be busy taking it apart.
	case refused(err) && asked:
		// Still being unplugged since an earlier call, whose wait ended.
	default:
		return err
	}
	select {
	case <-p.deleted:
		p.unplugged()
		return nil
	case <-m.proc.monitor.Done():
		return m.proc.monitor.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait until the guest lets go of %s: %w", p.where, context.Cause(ctx))
	}
}

func (p *plug) unplugged() { p.there, p.ready = false, time.Now().Add(slotRest) }

// deleted is called for QEMU's DEVICE_DELETED.
func (m *Machine) deleted(device string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.disks {
		d.ejected(device)
	}
	for _, n := range m.nics {
		n.ejected(device)
	}
}

// ejected takes note if the device is that one.
func (p *plug) ejected(device string) {
	if p.name != device {
		return
	}
	if !p.requested.Load() {
		log.L.WithField("device", p.name).Warn("the guest has ejected a device that it was not asked for")
	}
	select {
	case <-p.deleted:
	default:
		close(p.deleted)
	}
}
