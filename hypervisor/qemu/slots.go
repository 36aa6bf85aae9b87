package qemu

import (
	"errors"
	"fmt"
)

// ErrNoSlot is wrapped when a VM has as many disks as it has slots.
var ErrNoSlot = errors.New("no free disk slot")

// slots hands out the places for disks, the lowest free one first. It is not
// safe for concurrent use.
type slots struct{ taken []bool }

func (s *slots) take() (slot, error) {
	for i, taken := range s.taken {
		if !taken {
			s.taken[i] = true
			return slot(i), nil
		}
	}
	return 0, fmt.Errorf("%w: all %d are taken: raise hypervisor.slots (at most %d)", ErrNoSlot, len(s.taken), MaxDiskSlots)
}

func (s *slots) free(i slot) { s.taken[i] = false }

// slot is a place for a disk: a bridge, and a device number behind it.
type slot int

func (s slot) bridge() int { return int(s) / slotsPerBridge }

func (s slot) device() int { return firstSlot + int(s)%slotsPerBridge }

// bus and addr are how device_add names the place; QEMU reads addr as
// hexadecimal (hw/core/qdev-properties-system.c, set_pci_devfn).
func (s slot) bus() string { return bridgeID(s.bridge()) }

func (s slot) addr() string { return fmt.Sprintf("%02x", s.device()) }

// pciPath is how the agent protocol names it.
func (s slot) pciPath() string { return fmt.Sprintf("%02x/%02x", addrBridge+s.bridge(), s.device()) }
