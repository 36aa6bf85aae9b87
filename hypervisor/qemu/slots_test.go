package qemu

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestSlotsAreHandedOutLowestFirstAndThenTheLongestFree(t *testing.T) {
	s := newSlots(0, MaxDiskSlots, errNoDiskSlot)
	for want := range slot(MaxDiskSlots) {
		got, ready, err := s.take()
		if got != want || !ready.IsZero() || err != nil {
			t.Fatalf("got slot %d, ready %v, %v, want %d at once", got, ready, err, want)
		}
	}
	_, _, err := s.take()
	if !errors.Is(err, ErrNoSlot) || !strings.Contains(err.Error(), "hypervisor.slots") {
		t.Errorf("error is %v", err)
	}
	later := time.Now().Add(slotRest)
	s.giveBack(40, later)
	s.giveBack(7, time.Time{})
	for _, want := range []freeSlot{{40, later}, {7, time.Time{}}} {
		if got, ready, err := s.take(); got != want.slot || ready != want.ready || err != nil {
			t.Errorf("got slot %d, ready %v, %v, want %+v", got, ready, err, want)
		}
	}
}

func TestSlotHasOneNameForQEMUAndTheAgent(t *testing.T) {
	for s, want := range map[slot]string{
		0:                "bridge0 01 08/01",
		9:                "bridge0 0a 08/0a",
		30:               "bridge0 1f 08/1f",
		31:               "bridge1 01 09/01",
		MaxDiskSlots - 1: "bridge7 1f 0f/1f",
	} {
		if got := strings.Join([]string{s.bus(), s.addr(), s.pciPath()}, " "); got != want {
			t.Errorf("slot %d is %s, want %s", s, got, want)
		}
	}
}

// A guest that hears late of a disk that is gone must not find another in its place.
func TestSCSIAddressIsUsedAgainAfterAllOthersOfItsTarget(t *testing.T) {
	s := newSlots(0, MaxDiskSlots, errNoDiskSlot)
	seen := map[string]bool{}
	for range luns * MaxDiskSlots {
		got, _, err := s.take()
		if err != nil {
			t.Fatal(err)
		}
		at := VirtioSCSI.attachment(got).SCSI
		if seen[at] {
			t.Fatalf("%s had a disk before, after %d addresses", at, len(seen))
		}
		seen[at] = true
		s.giveBack(VirtioSCSI.after(got), time.Time{})
	}
	if got, _, err := s.take(); err != nil || VirtioSCSI.attachment(got).SCSI != "0:0" {
		t.Errorf("after %d addresses comes %+v, %v, want the first", len(seen), VirtioSCSI.attachment(got), err)
	}
	if last := fmt.Sprintf("%d:%d", MaxDiskSlots-1, luns-1); !seen[last] {
		t.Errorf("%s was not among them", last)
	}
}

func TestBridgesHoldTheSlots(t *testing.T) {
	for disks, want := range map[int]int{0: 0, 1: 1, 31: 1, 32: 2, 128: 5, MaxDiskSlots: maxDiskBridges, MaxDiskSlots + MaxNICSlots: maxDiskBridges + 1} {
		if got := bridges(disks); got != want {
			t.Errorf("%d disks have %d bridges, want %d", disks, got, want)
		}
	}
}

// What was promised to disks is theirs, however many interfaces there are.
func TestInterfacesHaveSlotsBehindThoseOfTheDisks(t *testing.T) {
	for driver, want := range map[BlockDriver]string{VirtioBlk: "0c/05", VirtioSCSI: "08/01"} {
		spec := Spec{BlockDriver: driver, DiskSlots: 128, NICSlots: 1}
		s := newSlots(spec.firstNICSlot(), spec.NICSlots, errNoNICSlot)
		got, _, err := s.take()
		if err != nil || got.pciPath() != want {
			t.Errorf("%s: %s, %v, want %s", driver, got.pciPath(), err, want)
		}
		if _, _, err := s.take(); !errors.Is(err, ErrNoSlot) || !strings.Contains(err.Error(), "interface") {
			t.Errorf("%s: a second one: %v", driver, err)
		}
	}
}
