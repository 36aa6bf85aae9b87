package qemu

import (
	"errors"
	"fmt"
	"time"
)

// ErrNoSlot is wrapped when a VM has as many disks and shares, or network
// interfaces, as it has slots for them.
var ErrNoSlot = errors.New("no free slot")

var (
	errNoDiskSlot  = fmt.Errorf("%w for a disk or a share: raise hypervisor.slots (at most %d)", ErrNoSlot, MaxDiskSlots)
	errNoShareSlot = fmt.Errorf("%w for a share: with hypervisor.block_driver = %q there are as many as hypervisor.slots says", ErrNoSlot, VirtioBlk)
	errNoNICSlot   = fmt.Errorf("%w for a network interface", ErrNoSlot)
)

// shareSlots is how many shares a VM takes whose disks need no PCI slots. Where
// they do, the slots are for both.
const shareSlots = slotsPerBridge

// slotRest is how long a slot stays empty after a device was unplugged from it.
//
// A guest is not done with a slot when QEMU says that the disk is gone. By ACPI
// every event has the guest told again of each slot that is to be ejected, and
// it ejects once for each time, so that a second eject takes away whatever was
// plugged in since the first (acpi_pcihp_eject_slot in hw/acpi/pcihp.c,
// acpiphp_disable_and_eject_slot in Linux): with 20 disks coming and going it did
// so every time. By SCSI it bounds how soon an address can be used again: luns
// times this.
const slotRest = 2 * time.Second

// slots hands out the places for one kind of device, the one that has been free the longest
// first: lowest first as long as there are new ones. It is not safe for
// concurrent use.
type slots struct {
	free  []freeSlot
	count int   // of all
	full  error // what is said when none is free
}

type freeSlot struct {
	slot  slot
	ready time.Time // when it may be used
}

func newSlots(first slot, n int, full error) slots {
	s := slots{free: make([]freeSlot, n), count: n, full: full}
	for i := range s.free {
		s.free[i].slot = first + slot(i)
	}
	return s
}

// take returns a slot and when it may be used.
func (s *slots) take() (slot, time.Time, error) {
	if len(s.free) == 0 {
		return 0, time.Time{}, fmt.Errorf("all %d are taken: %w", s.count, s.full)
	}
	first := s.free[0]
	s.free = s.free[1:]
	return first.slot, first.ready, nil
}

// giveBack takes a slot that may be used again from then on.
func (s *slots) giveBack(i slot, ready time.Time) {
	s.free = append(s.free, freeSlot{i, ready})
}

// slot is a place for a device: behind PCI bridges a bridge and a device number, on
// a SCSI bus a target and, counted in steps of targets, a unit of it.
type slot int

func (s slot) bridge() int { return int(s) / slotsPerBridge }

func (s slot) device() int { return firstSlot + int(s)%slotsPerBridge }

// bus and addr are how device_add names the place; QEMU reads addr as
// hexadecimal (hw/core/qdev-properties-system.c, set_pci_devfn).
func (s slot) bus() string { return bridgeID(s.bridge()) }

func (s slot) addr() string { return fmt.Sprintf("%02x", s.device()) }

// pciPath is how the agent protocol names it.
func (s slot) pciPath() string { return fmt.Sprintf("%02x/%02x", addrBridge+s.bridge(), s.device()) }

// targets and luns are how many addresses the SCSI bus has for disks. QEMU's
// controller has 256 targets (hw/scsi/virtio-scsi.c, VIRTIO_SCSI_MAX_TARGET), more
// than MaxDiskSlots; units from 256 on are written in another way, which Linux reads
// wrongly in events (drivers/scsi/virtio_scsi.c, virtscsi_handle_transport_reset).
const (
	targets = 256
	luns    = 256
)

// target and lun are the address on the SCSI bus.
func (s slot) target() int { return int(s) % targets }

func (s slot) lun() int { return int(s) / targets }

// nextLUN is the slot with the same target whose unit comes next, the first one
// after the last.
//
// A guest that is told late that a disk is gone takes the next one at that address
// for the disk it knows, with its size and serial, or drops it at once
// (docs/decisions/0023-a-scsi-address-has-one-disk.md): so an address
// that had a disk gets no other before all others of the target had one.
func (s slot) nextLUN() slot { return (s + targets) % (targets * luns) }
