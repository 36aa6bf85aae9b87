package qemu

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor"
)

func TestTheLastSlotsForMemoryAreEnough(t *testing.T) {
	for _, tc := range []struct {
		name                    string
		have, want, most, slots int
		plug                    int
	}{
		{"a block", 512, 640, 4096, 5, 128},
		{"a part of a block is a whole one", 512, 513, 4096, 5, 128},
		{"no more than there can be", 512, 600, 512, 5, 0},
		{"the last but one doubles", 1152, 1280, 8192, 2, 1152},
		{"or gives what is asked for", 1152, 8000, 8192, 2, 6912},
		{"the last gives all", 2304, 2432, 8192, 1, 5888},
	} {
		if got := dimmMiB(tc.have, tc.want, tc.most, tc.slots); got != tc.plug {
			t.Errorf("%s: %d MiB, want %d", tc.name, got, tc.plug)
		}
	}
	// Whatever is asked for, one block after the other.
	const most = 64 << 10
	for have, slots := 512, memorySlots; have < most; slots-- {
		if slots == 0 {
			t.Fatalf("no slot is left, and the VM has %d of %d MiB", have, most)
		}
		have += dimmMiB(have, have+memoryBlockMiB, most, slots)
	}
}

// growingSpec can become larger, and its guest would take processors.
func growingSpec(s Spec) Spec {
	s.MaxVCPUs, s.MaxMemoryMiB, s.disguised = 4, 8<<10, true
	return s
}

// processorIDs are the core ids of the processors that are there.
func processorIDs(t *testing.T, m *Machine) []int {
	t.Helper()
	var all []struct {
		Path  string `json:"qom-path"`
		Props struct {
			Core int `json:"core-id"`
		} `json:"props"`
	}
	do(t, m, "query-hotpluggable-cpus", nil, &all)
	var ids []int
	for _, p := range all {
		if p.Path != "" {
			ids = append(ids, p.Props.Core)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestProcessorsArePluggedInFromTheFirstOn(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		m := start(t, growingSpec(spec))
		if vcpus, mib := m.Limits(); vcpus != 4 || mib != 8<<10 {
			t.Errorf("limits are %d and %d MiB", vcpus, mib)
		}
		for _, total := range []int{1, 3, 3, 2, 4} {
			want := max(total, len(processorIDs(t, m)))
			if got, err := m.AddCPUs(within(t), total); err != nil || got != want {
				t.Fatalf("up to %d: %d, %v", total, got, err)
			}
			if ids := processorIDs(t, m); !slices.Equal(ids, []int{0, 1, 2, 3}[:want]) {
				t.Errorf("up to %d: there are %v", total, ids)
			}
		}
		got, err := m.AddCPUs(within(t), 5)
		if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "raise hypervisor.max_vcpus") || got != 4 {
			t.Errorf("one too many: %d, %v", got, err)
		}
	})
}

// A command whose answer came too late has been executed.
func TestAProcessorThatIsThereIsNotPluggedInAgain(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		m := start(t, growingSpec(spec))
		do(t, m, "device_add", map[string]any{"driver": "max-x86_64-cpu", "id": "cpu-1", "socket-id": 0, "core-id": 1, "thread-id": 0}, nil)
		if got, err := m.AddCPUs(within(t), 3); err != nil || got != 3 {
			t.Errorf("%d, %v", got, err)
		}
	})
}

func TestWithoutKVMNoProcessorIsOffered(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec = growingSpec(spec)
		spec.disguised = false
		m := start(t, spec)
		if vcpus, _ := m.Limits(); vcpus != 1 {
			t.Errorf("the limit is %d", vcpus)
		}
		if got, err := m.AddCPUs(within(t), 2); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "KVM") || got != 1 {
			t.Errorf("%d, %v", got, err)
		}
	})
}

// plugged is the memory that QEMU has added to that of the boot, in MiB.
func plugged(t *testing.T, m *Machine) int {
	t.Helper()
	var size struct {
		Plugged int64 `json:"plugged-memory"`
	}
	do(t, m, "query-memory-size-summary", nil, &size)
	return int(size.Plugged >> 20)
}

// soon is the context of a call whose wait is to end.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Its memory is of the kind that it booted with, so that the vsock daemon can map
// it.
func TestMemoryIsPluggedInAndAwaited(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		m := start(t, growingSpec(spec))
		if got, err := m.AddMemory(within(t), 256); err != nil || got != 256 {
			t.Errorf("what it has: %d, %v", got, err)
		}
		for _, total := range []int{300, 384, 200} { // the guest never takes it
			got, err := m.AddMemory(soon(t), total)
			if !errors.Is(err, context.DeadlineExceeded) || got != 384 || plugged(t, m) != 128 {
				t.Fatalf("up to %d: %d with %d plugged in, %v", total, got, plugged(t, m), err)
			}
		}
		var backends []struct {
			ID    string
			Share bool
		}
		do(t, m, "query-memdev", nil, &backends)
		for _, b := range backends {
			if !b.Share {
				t.Errorf("the memory %q is private", b.ID)
			}
		}
		if len(backends) != 2 {
			t.Errorf("memory: %+v", backends)
		}
		got, err := m.AddMemory(within(t), 8<<10+1)
		if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "raise hypervisor.max_memory_mib") || got != 384 {
			t.Errorf("too much: %d, %v", got, err)
		}
	})
}

// A VM with memory on both sides of the 4 GiB has the most regions at its start.
// Its processor runs, as it does when memory is plugged in.
func TestAllSlotsForMemoryCanBeUsed(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec = idleSpec(t, growingSpec(spec))
		spec.MemoryMiB, spec.MaxMemoryMiB = 4<<10, 64<<10
		m := start(t, spec)
		have := spec.MemoryMiB
		for range memorySlots {
			got, err := m.AddMemory(soon(t), have+1)
			if !errors.Is(err, context.DeadlineExceeded) || got <= have {
				t.Fatalf("from %d MiB: %d, %v", have, got, err)
			}
			have = got
		}
		if have != spec.MaxMemoryMiB || plugged(t, m) != have-spec.MemoryMiB {
			t.Errorf("all slots are taken, and it has %d MiB of %d", have, spec.MaxMemoryMiB)
		}
	})
}

func TestNothingIsLeftOfMemoryThatIsRefused(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		m := start(t, growingSpec(spec))
		m.spec.MaxMemoryMiB *= 2 // more than QEMU was told
		got, err := m.AddMemory(within(t), m.spec.MaxMemoryMiB)
		if err == nil || !strings.Contains(err.Error(), "hypervisor.memory_mib") || got != 256 {
			t.Errorf("%d, %v", got, err)
		}
		var backends []struct{ ID string }
		do(t, m, "query-memdev", nil, &backends)
		if len(backends) != 1 || plugged(t, m) != 0 {
			t.Errorf("memory: %+v, %d MiB plugged in", backends, plugged(t, m))
		}
		if got, err := m.AddMemory(soon(t), 384); !errors.Is(err, context.DeadlineExceeded) || got != 384 {
			t.Errorf("the next: %d, %v", got, err)
		}
	})
}

// What QEMU has done with a command whose answer is late is looked up.
func TestTheRollbackOfMemoryFindsOutWhetherItIsThere(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		m := start(t, growingSpec(spec))
		backend, device := map[string]any{"qom-type": "memory-backend-memfd", "id": "plugged-0", "size": 128 << 20, "share": true},
			map[string]any{"driver": "pc-dimm", "id": "dimm-0", "memdev": "plugged-0"}
		do(t, m, "object-add", backend, nil)
		if there, err := m.undoMemory(within(t), "plugged-0", "dimm-0"); there || err != nil {
			t.Errorf("without the device: %v, %v", there, err)
		}
		if there, err := m.undoMemory(within(t), "plugged-0", "dimm-0"); there || err != nil {
			t.Errorf("again: %v, %v", there, err)
		}
		do(t, m, "object-add", backend, nil)
		do(t, m, "device_add", device, nil)
		if there, err := m.undoMemory(within(t), "plugged-0", "dimm-0"); !there || err != nil {
			t.Errorf("with it: %v, %v", there, err)
		}
	})
}

func TestGrowingAVMThatIsGone(t *testing.T) {
	m := start(t, growingSpec(stoppedSpec(t)))
	if err := m.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	if got, err := m.AddCPUs(within(t), 2); !errors.Is(err, hypervisor.ErrGone) || got != 1 {
		t.Errorf("%d, %v", got, err)
	}
	if got, err := m.AddMemory(within(t), 384); !errors.Is(err, hypervisor.ErrGone) || got != 256 {
		t.Errorf("%d MiB, %v", got, err)
	}
}

// guestSize is what the guest says of itself.
type guestSize struct {
	Processors int
	KiB        int
}

func TestAGuestGrows(t *testing.T) {
	m := start(t, growingSpec(guestSpec(t)))
	if err := m.WaitReady(within(t)); err != nil {
		t.Fatal(err)
	}
	g := dial(t, m)
	var before, after guestSize
	if g.ask(&before, "size"); before.Processors != 1 {
		t.Fatalf("it begins with %+v", before)
	}
	for _, step := range []struct{ total, added int }{{256 + 128, 128}, {1024, 640}} {
		began := time.Now()
		got, err := m.AddMemory(within(t), step.total)
		if err != nil || got != step.total {
			t.Fatalf("%d MiB, %v%s", got, err, m.Tail())
		}
		t.Logf("%d MiB taken after %v", step.added, time.Since(began))
		g.ask(&after, "size")
		// A 64th of each block describes its pages.
		if more := after.KiB - before.KiB; more != step.added*1024*63/64 {
			t.Errorf("%d MiB more are %d KiB more", step.added, more)
		}
		before = after
	}
	began := time.Now()
	if got, err := m.AddCPUs(within(t), 3); err != nil || got != 3 {
		t.Fatalf("%d processors, %v%s", got, err, m.Tail())
	}
	if g.ask(&after, "online 3"); after.Processors != 3 {
		t.Errorf("of 3 processors, %d are online%s", after.Processors, m.Tail())
	}
	t.Logf("2 processors online after %v", time.Since(began))

	// The device that carries this was told of the memory: it goes on when the
	// guest has little left of what it booted with.
	g.must("hold 400")
	for range 20 {
		var echo struct{ Echo string }
		const n = 16 << 10
		if dial(t, m).ask(&echo, "echo %s", strings.Repeat("x", n)); len(echo.Echo) != n {
			t.Fatalf("an echo of %d bytes", len(echo.Echo))
		}
	}
	place := attach(t, m, "late", true)
	g.wantDisk("late", place, 1<<20, true)
}
