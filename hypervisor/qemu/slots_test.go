package qemu

import (
	"errors"
	"strings"
	"testing"
)

func TestSlotsAreHandedOutLowestFirstAndAgain(t *testing.T) {
	s := slots{taken: make([]bool, MaxDiskSlots)}
	seen := map[string]bool{}
	for range MaxDiskSlots {
		slot, err := s.take()
		if err != nil {
			t.Fatal(err)
		}
		if seen[slot.pciPath()] {
			t.Errorf("%s is handed out twice", slot.pciPath())
		}
		seen[slot.pciPath()] = true
	}
	_, err := s.take()
	if !errors.Is(err, ErrNoSlot) || !strings.Contains(err.Error(), "hypervisor.slots") {
		t.Errorf("error is %v", err)
	}
	s.free(40)
	s.free(7)
	for _, want := range []slot{7, 40} {
		if got, err := s.take(); got != want || err != nil {
			t.Errorf("got slot %d, %v, want %d", got, err, want)
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

func TestBridgesHoldTheSlots(t *testing.T) {
	for disks, want := range map[int]int{0: 0, 1: 1, 31: 1, 32: 2, 128: 5, MaxDiskSlots: maxBridges} {
		if got := bridges(disks); got != want {
			t.Errorf("%d disks have %d bridges, want %d", disks, got, want)
		}
	}
}
