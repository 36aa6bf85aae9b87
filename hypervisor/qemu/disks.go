package qemu

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qmp"
)

// ErrDiskExists is wrapped by an Attach of a disk whose ID is in use.
var ErrDiskExists = errors.New("disk is attached already")

// maxImagePath is where the strings of QEMU's file driver end (PATH_MAX with the NUL).
const maxImagePath = 4095

// rollbackTimeout bounds what undoes a failed Attach.
const rollbackTimeout = 10 * time.Second

// diskID is what a virtio-blk serial holds (VIRTIO_BLK_ID_BYTES is 20) of what is
// also part of QEMU's names for the device and its node.
var diskID = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*$`)
})

const maxDiskID = 20 // bytes

func isDiskID(id string) bool { return len(id) <= maxDiskID && diskID().MatchString(id) }

// disk is a disk, or a share, that has a slot. It is in Machine.disks from before
// the first command about it until after the last one.
type disk struct {
	id string
	on BlockDriver // how it is plugged in: a share as virtio-blk is
	plug
	// vectors: the device has interrupts of its own.
	vectors bool
	// thread serves it, by the name of an iothread; "" for QEMU's main thread.
	thread string
	// node says whether QEMU has the disk's block node, as far as it is known.
	// Guarded by turn.
	node bool
	// sets are the descriptor sets that QEMU may still have of the disk's files.
	// Guarded by turn.
	sets []int64
	// share is what serves a share; nil for a disk. Guarded by turn.
	share *share
}

func (d *disk) nodeName() string { return "disk-" + d.id }

// Attach implements hypervisor.VM.
func (m *Machine) Attach(ctx context.Context, want hypervisor.Disk) (hypervisor.Attachment, error) {
	d, err := m.attach(ctx, want)
	if err != nil {
		return hypervisor.Attachment{}, fmt.Errorf("attach disk %q (%s): %w", want.ID, want.Path, gone(err))
	}
	return d.on.attachment(d.slot), nil
}

func (m *Machine) attach(ctx context.Context, want hypervisor.Disk) (*disk, error) {
	if err := checkDisk(want); err != nil {
		return nil, err
	}
	d, err := m.reserve(want.ID, m.spec.BlockDriver)
	if err != nil {
		return nil, err
	}
	defer m.settle(ctx, d)

	err = m.rest(ctx, &d.plug)
	var name string
	if err == nil {
		name, err = m.lend(ctx, d, want)
	}
	// What times out may have happened, so it counts as done to the rollback.
	if err == nil {
		err = m.proc.monitor.Execute(ctx, "blockdev-add", node(d, want, name, m.aio, m.spec.CacheDirect), nil)
		d.node = !refused(err)
	}
	if err == nil {
		err = m.proc.monitor.Execute(ctx, "device_add", d.on.device(d), nil)
		d.there, d.plugged = !refused(err), err == nil
	}
	if err != nil {
		return nil, m.rollBack(ctx, d, err)
	}
	return d, nil
}

// rollBack undoes what there is of d after an error. The caller holds the turn of d.
func (m *Machine) rollBack(ctx context.Context, d *disk, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	if err := m.remove(ctx, d); err != nil && !errors.Is(err, qmp.ErrClosed) {
		return errors.Join(cause, fmt.Errorf("roll back: %w", err))
	}
	return cause
}

// refused says that QEMU answered that it has not done what was asked.
func refused(err error) bool {
	var answer *qmp.Error
	return errors.As(err, &answer)
}

// reserve takes a slot and the ID, and the turn of the disk.
func (m *Machine) reserve(id string, on BlockDriver) (*disk, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disks[id] != nil {
		return nil, ErrDiskExists
	}
	slot, ready, err := m.slotsFor(on).take()
	if err != nil {
		return nil, err
	}
	d := &disk{id: id, on: on, plug: newPlug("virtio-"+id, "the device at "+on.place(slot), slot, ready)}
	d.pci = on == VirtioBlk
	if d.vectors = m.vectors < disksWithVectors; d.vectors {
		m.vectors++
	}
	if n := m.spec.ioThreads(); n > 0 {
		d.thread = ioThread(int(slot) % n)
	}
	m.disks[id] = d
	return d, nil
}

// slotsFor are the slots of a kind of device. The caller holds m.mu.
func (m *Machine) slotsFor(on BlockDriver) *slots {
	if on != m.spec.BlockDriver {
		return &m.shareSlots
	}
	return &m.slots
}

// Detach implements hypervisor.VM. After an error the disk can be half gone; it
// keeps its slot, and Detach goes on where it stopped.
func (m *Machine) Detach(ctx context.Context, id string) error {
	m.mu.Lock()
	d := m.disks[id]
	m.mu.Unlock()
	if d == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	if err := d.await(ctx); err != nil {
		return fmt.Errorf("detach %q: %w", id, err)
	}
	defer d.release()
	if err := m.remove(ctx, d); err != nil {
		return fmt.Errorf("detach %q: %w", id, gone(err))
	}
	return nil
}

// remove takes from QEMU what it has of d, and gives the slot back. The caller
// holds the turn of d. Removing what is removed is no error.
func (m *Machine) remove(ctx context.Context, d *disk) error {
	if err := m.unplug(ctx, &d.plug); err != nil {
		return err
	}
	if d.node {
		err := m.proc.monitor.Execute(ctx, "blockdev-del", map[string]any{"node-name": d.nodeName()}, nil)
		if err != nil {
			has, queryErr := m.hasNode(ctx, d.nodeName())
			if queryErr != nil || has {
				return errors.Join(err, queryErr)
			}
		}
		d.node = false
	}
	if err := m.takeBack(ctx, d); err != nil {
		return err
	}
	if err := m.endShare(ctx, d); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disks[d.id] == d {
		delete(m.disks, d.id)
		if d.vectors {
			m.vectors--
		}
		m.slotsFor(d.on).giveBack(d.on.after(d.slot), d.ready)
	}
	return nil
}

// hasNode says whether QEMU has a block node of this name.
func (m *Machine) hasNode(ctx context.Context, name string) (bool, error) {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := m.proc.monitor.Execute(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return false, err
	}
	for _, n := range nodes {
		if n.Name == name {
			return true, nil
		}
	}
	return false, nil
}

// gone makes of a lost monitor what the contract of hypervisor.VM calls it.
func gone(err error) error {
	if errors.Is(err, qmp.ErrClosed) {
		return fmt.Errorf("%w: %w", hypervisor.ErrGone, err)
	}
	return err
}
