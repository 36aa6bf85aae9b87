package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
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
var diskID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,19}$`)

// disk is a disk that has a slot. It is in Machine.disks from before the first
// command about it until after the last one.
type disk struct {
	id   string
	slot slot
	// turn is held by the one call that changes the disk. A channel, so that
	// waiting for it ends with the caller's context, and so that no lock is
	// held over a command.
	turn chan struct{}
	// deleted is closed by QEMU's DEVICE_DELETED.
	deleted chan struct{}
	// node and device say what QEMU has of the disk, as far as it is known.
	// Guarded by turn.
	node, device bool
	// requested: QEMU has asked the guest to let go of the device. Guarded by
	// turn.
	requested bool
}

func (d *disk) nodeName() string   { return "disk-" + d.id }
func (d *disk) deviceName() string { return "virtio-" + d.id }

// Attach implements hypervisor.VM.
func (m *Machine) Attach(ctx context.Context, want hypervisor.Disk) (hypervisor.Attachment, error) {
	d, err := m.attach(ctx, want)
	if err != nil {
		return hypervisor.Attachment{}, fmt.Errorf("attach disk %q (%s): %w", want.ID, want.Path, gone(err))
	}
	return hypervisor.Attachment{PCIPath: d.slot.pciPath()}, nil
}

func (m *Machine) attach(ctx context.Context, want hypervisor.Disk) (*disk, error) {
	if err := checkDisk(want); err != nil {
		return nil, err
	}
	d, err := m.reserve(want.ID)
	if err != nil {
		return nil, err
	}
	defer func() { <-d.turn }()

	// What times out may have happened, so it counts as done to the rollback.
	if err = m.proc.monitor.Execute(ctx, "blockdev-add", node(d, want, m.aio, m.spec.CacheDirect), nil); !refused(err) {
		d.node = true
	}
	if err == nil {
		err = m.proc.monitor.Execute(ctx, "device_add", map[string]any{
			"driver": "virtio-blk-pci", "id": d.deviceName(), "drive": d.nodeName(), "serial": d.id,
			"bus": d.slot.bus(), "addr": d.slot.addr(), "disable-legacy": "on",
		}, nil)
		if !refused(err) {
			d.device = true
		}
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		if undoErr := m.remove(undo, d); undoErr != nil && !errors.Is(undoErr, qmp.ErrClosed) {
			err = errors.Join(err, fmt.Errorf("roll back: %w", undoErr))
		}
		return nil, err
	}
	return d, nil
}

// refused says that QEMU answered that it has not done what was asked.
func refused(err error) bool {
	var answer *qmp.Error
	return errors.As(err, &answer)
}

// reserve takes a slot and the ID, and the turn of the disk.
func (m *Machine) reserve(id string) (*disk, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disks[id] != nil {
		return nil, ErrDiskExists
	}
	slot, err := m.slots.take()
	if err != nil {
		return nil, err
	}
	d := &disk{id: id, slot: slot, turn: make(chan struct{}, 1), deleted: make(chan struct{})}
	d.turn <- struct{}{}
	m.disks[id] = d
	return d, nil
}

// node is the argument of blockdev-add (qapi/block-core.json, BlockdevOptions).
// The extents that a VMDK descriptor names are opened by QEMU with the same
// cache mode and always with aio=threads.
func node(d *disk, want hypervisor.Disk, aio AIO, direct bool) map[string]any {
	cache := map[string]any{"direct": direct, "no-flush": false}
	discard := "unmap"
	if want.ReadOnly {
		discard = "ignore"
	}
	options := func(driver string) map[string]any {
		return map[string]any{
			"driver": driver, "read-only": want.ReadOnly, "auto-read-only": false,
			"discard": discard, "cache": cache,
		}
	}
	file := options("file")
	file["filename"], file["aio"] = want.Path, aio
	format := options(string(want.Driver))
	format["node-name"], format["file"] = d.nodeName(), file
	return format
}

// checkDisk refuses what QEMU must not be asked for.
func checkDisk(d hypervisor.Disk) error {
	if !diskID.MatchString(d.ID) {
		return errors.New("the ID must be 1 to 20 letters, digits and '-', and not begin with '-'")
	}
	switch d.Driver {
	case hypervisor.DriverRaw:
	case hypervisor.DriverVMDK:
		if !d.ReadOnly {
			return errors.New("a vmdk disk must be read-only: its extents are image layers")
		}
	default:
		return fmt.Errorf("driver %q is not raw or vmdk", d.Driver)
	}
	if err := cleanPath(d.Path); err != nil {
		return err
	}
	if len(d.Path) > maxImagePath {
		return fmt.Errorf("the path has %d bytes, and %d are allowed", len(d.Path), maxImagePath)
	}
	// QEMU would wait for ever for the writer of a FIFO.
	fi, err := os.Stat(d.Path)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	return nil
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
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return fmt.Errorf("detach disk %q: wait for another call about it: %w", id, context.Cause(ctx))
	}
	if err := m.remove(ctx, d); err != nil {
		return fmt.Errorf("detach disk %q: %w", id, gone(err))
	}
	return nil
}

// remove takes from QEMU what it has of d, and gives the slot back. The caller
// holds the turn of d. Removing what is removed is no error.
func (m *Machine) remove(ctx context.Context, d *disk) error {
	if d.device {
		if err := m.unplug(ctx, d); err != nil {
			return err
		}
		d.device = false
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
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disks[d.id] == d {
		delete(m.disks, d.id)
		m.slots.free(d.slot)
	}
	return nil
}

// unplug asks the guest to let go of the device and waits until it has.
func (m *Machine) unplug(ctx context.Context, d *disk) error {
	err := m.proc.monitor.Execute(ctx, "device_del", map[string]any{"id": d.deviceName()}, nil)
	switch {
	case err == nil:
		d.requested = true
	case qmp.IsClass(err, qmp.ClassDeviceNotFound):
		return nil
	case refused(err) && d.requested:
		// Still being unplugged since an earlier call, whose wait ended.
	default:
		return err
	}
	select {
	case <-d.deleted:
		return nil
	case <-m.proc.monitor.Done():
		return m.proc.monitor.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait until the guest lets go of the disk at %s: %w", d.slot.pciPath(), context.Cause(ctx))
	}
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

// deleted is called for QEMU's DEVICE_DELETED.
func (m *Machine) deleted(device string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.disks {
		if d.deviceName() == device {
			select {
			case <-d.deleted:
			default:
				close(d.deleted)
			}
		}
	}
}

// gone makes of a lost monitor what the contract of hypervisor.VM calls it.
func gone(err error) error {
	if errors.Is(err, qmp.ErrClosed) {
		return fmt.Errorf("%w: %w", hypervisor.ErrGone, err)
	}
	return err
}
