package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/test/need"
)

// nodes are the block nodes QEMU has.
func nodes(t *testing.T, m *Machine) []string {
	t.Helper()
	var list []struct {
		Name string `json:"node-name"`
	}
	if err := m.proc.monitor.Execute(within(t), "query-named-block-nodes", map[string]any{"flat": true}, &list); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range list {
		names = append(names, n.Name)
	}
	return names
}

func wantNoDisk(t *testing.T, m *Machine) {
	t.Helper()
	if left := nodes(t, m); len(left) > 0 {
		t.Errorf("block nodes are left: %v", left)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.disks) > 0 {
		t.Errorf("%d disks are still known", len(m.disks))
	}
	if taken := m.slots.count - len(m.slots.free); taken != 0 || m.vectors != 0 {
		t.Errorf("%d slots are still taken, and %d disks have vectors", taken, m.vectors)
	}
}

// occupy takes the name that the device of a disk would have, so that its
// device_add fails after its blockdev-add has not.
func occupy(t *testing.T, m *Machine, id string) {
	t.Helper()
	device := map[string]any{"driver": "virtio-rng-pci", "id": "virtio-" + id, "bus": bridgeID(0), "addr": "1f", "disable-legacy": "on"}
	if m.spec.BlockDriver == VirtioSCSI {
		device = map[string]any{"driver": "scsi-cd", "id": "virtio-" + id, "bus": scsiBus, "scsi-id": 255}
	}
	do(t, m, "device_add", device, nil)
}

// A guest that does not run plugs nothing, but QEMU does everything up to there.
func TestAttachThatFailsLeavesNothing(t *testing.T) {
	eachDriver(t, func(t *testing.T, with func(Spec) Spec) { testAttachThatFails(t, with(stoppedSpec(t))) })
}

func testAttachThatFails(t *testing.T, spec Spec) {
	m := start(t, spec)
	good := image(t, "good", 1)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	descriptor := filepath.Join(t.TempDir(), "bad.vmdk")
	if err := os.WriteFile(descriptor, []byte("# Disk DescriptorFile\ncreateType=\"twoGbMaxExtentFlat\"\nRW 8 FLAT \"/no/such/extent\" 0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	occupy(t, m, "twin")
	for name, tc := range map[string]struct {
		disk hypervisor.Disk
		want error
	}{
		"missing file":     {hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: "/no/such/file"}, os.ErrNotExist},
		"fifo":             {hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: fifo}, nil},
		"directory":        {hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: "/"}, nil},
		"relative path":    {hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: "disk.img"}, nil},
		"protocol in path": {hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: "nbd://localhost/"}, nil},
		"newline in path":  {hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: "/a\nb"}, nil},
		"unknown driver":   {hypervisor.Disk{ID: "a", Driver: "qcow2", Path: good}, nil},
		"writable vmdk":    {hypervisor.Disk{ID: "a", Driver: hypervisor.DriverVMDK, Path: good}, nil},
		"not a vmdk":       {hypervisor.Disk{ID: "a", Driver: hypervisor.DriverVMDK, Path: good, ReadOnly: true}, nil},
		"missing extent":   {hypervisor.Disk{ID: "a", Driver: hypervisor.DriverVMDK, Path: descriptor, ReadOnly: true}, nil},
		"device refused":   {hypervisor.Disk{ID: "twin", Driver: hypervisor.DriverRaw, Path: good, ReadOnly: true}, nil},
		"no ID":            {hypervisor.Disk{Driver: hypervisor.DriverRaw, Path: good, ReadOnly: true}, nil},
		"long ID":          {hypervisor.Disk{ID: strings.Repeat("a", 21), Driver: hypervisor.DriverRaw, Path: good, ReadOnly: true}, nil},
		"ID with a comma":  {hypervisor.Disk{ID: "a,b", Driver: hypervisor.DriverRaw, Path: good, ReadOnly: true}, nil},
		"ID with a slash":  {hypervisor.Disk{ID: "../a", Driver: hypervisor.DriverRaw, Path: good, ReadOnly: true}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := m.Attach(within(t), tc.disk)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("error is %v", err)
			}
			if !strings.Contains(err.Error(), fmt.Sprintf("%q", tc.disk.ID)) {
				t.Errorf("the error does not name the disk: %v", err)
			}
			wantNoDisk(t, m)
		})
	}
}

func TestOldestSupportedQEMU(t *testing.T) {
	eachDriver(t, func(t *testing.T, with func(Spec) Spec) {
		spec := with(stoppedSpec(t))
		spec.Binary = testguest.Find(t).OldestQEMU
		if _, err := os.Stat(spec.Binary); err != nil {
			need.Missing(t, "test/setup/tools.sh has not installed QEMU 7.2: %v", err)
		}
		m := start(t, spec)
		if v := m.proc.monitor.Version().QEMU; v.Major != 7 || v.Minor != 2 {
			t.Errorf("version is %+v", v)
		}
		want := map[BlockDriver]hypervisor.Attachment{VirtioBlk: {PCIPath: "08/01"}, VirtioSCSI: {SCSI: "0:0"}}
		if a := attach(t, m, "a", true); a != want[spec.BlockDriver] {
			t.Errorf("disk is at %+v", a)
		}
	})
}

func TestAttachOfAnAttachedIDIsRefused(t *testing.T) {
	m := start(t, stoppedSpec(t))
	d := hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: image(t, "a", 1), ReadOnly: true}
	if _, err := m.Attach(within(t), d); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Attach(within(t), d); !errors.Is(err, ErrDiskExists) {
		t.Errorf("error is %v", err)
	}
}

// A layer may be in use by another VM: a writable open would fail there.
func TestReadOnlyDisksOpenEveryFileReadOnly(t *testing.T) {
	m := start(t, stoppedSpec(t))
	one, two := image(t, "one", 1), image(t, "two", 1)
	descriptor := filepath.Join(t.TempDir(), "layers.vmdk")
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n"+
		"RW 2048 FLAT %q 0\nRW 1024 FLAT %q 512\n", one, two)
	if err := os.WriteFile(descriptor, []byte(text), 0o444); err != nil {
		t.Fatal(err)
	}
	for _, d := range []hypervisor.Disk{
		{ID: "vmdk", Driver: hypervisor.DriverVMDK, Path: descriptor, ReadOnly: true},
		{ID: "raw", Driver: hypervisor.DriverRaw, Path: one, ReadOnly: true},
	} {
		if _, err := m.Attach(within(t), d); err != nil {
			t.Fatal(err)
		}
	}
	var list []struct {
		File     string `json:"file"`
		ReadOnly bool   `json:"ro"`
	}
	if err := m.proc.monitor.Execute(within(t), "query-named-block-nodes", map[string]any{"flat": true}, &list); err != nil {
		t.Fatal(err)
	}
	open := map[string]bool{}
	for _, n := range list {
		if open[n.File] = true; !n.ReadOnly {
			t.Errorf("%s is open for writing", n.File)
		}
	}
	if !open[one] || !open[two] {
		t.Errorf("open are %v", open)
	}
}

func TestAsManyDisksAsSlots(t *testing.T) {
	eachDriver(t, func(t *testing.T, with func(Spec) Spec) {
		spec := with(stoppedSpec(t))
		spec.DiskSlots = MaxDiskSlots
		m := start(t, spec)
		path := image(t, "shared", 1)
		places := make([]hypervisor.Attachment, spec.DiskSlots)
		var all sync.WaitGroup
		for i := range places {
			all.Go(func() {
				a, err := m.Attach(within(t), hypervisor.Disk{ID: fmt.Sprintf("d-%d", i), Driver: hypervisor.DriverRaw, Path: path, ReadOnly: true})
				if err != nil {
					t.Error(err)
				}
				places[i] = a
			})
		}
		all.Wait()
		seen := map[hypervisor.Attachment]bool{}
		for _, p := range places {
			if seen[p] {
				t.Errorf("two disks are at %s", p)
			}
			seen[p] = true
		}
		_, err := m.Attach(within(t), hypervisor.Disk{ID: "more", Driver: hypervisor.DriverRaw, Path: path, ReadOnly: true})
		if !errors.Is(err, ErrNoSlot) || !strings.Contains(err.Error(), "hypervisor.slots") {
			t.Errorf("error is %v", err)
		}
	})
}

// A guest that never lets go must not hold the caller up, and what it has keeps
// its slot, so that nothing else is plugged there.
func TestDetachFromADeafGuestMeetsItsDeadlineEachTime(t *testing.T) {
	m := start(t, stoppedSpec(t))
	d := hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: image(t, "a", 1), ReadOnly: true}
	if _, err := m.Attach(within(t), d); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if err := m.Detach(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		cancel()
	}
	if _, err := m.Attach(within(t), d); !errors.Is(err, ErrDiskExists) {
		t.Errorf("attach again: %v", err)
	}
}

// QEMU takes a SCSI disk away whether the guest agrees or not.
func TestSCSIDiskOfADeafGuestIsGoneAtOnce(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.BlockDriver = VirtioSCSI
		m := start(t, spec)
		for range 2 {
			attach(t, m, "a", true)
			for range 2 {
				if err := m.Detach(within(t), "a"); err != nil {
					t.Error(err)
				}
			}
			wantNoDisk(t, m)
		}
	})
}

// TestDisksOfARunningGuest has it with a guest that must agree.
func TestSlotsAreGivenBackAThousandTimes(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.BlockDriver, spec.DiskSlots = VirtioSCSI, MaxDiskSlots
		m := start(t, idleSpec(t, spec))
		path := filled(t, 1)
		one, two := open(t, path, os.O_RDONLY), open(t, path, os.O_RDONLY)
		before := diskFiles(t, m)
		// QEMU thinks for 50 ms before it lets go of a device (util/rcu.c,
		// call_rcu_thread), but of all at once.
		const times, atOnce = 1000, 25
		var all sync.WaitGroup
		for i := range atOnce {
			all.Go(func() {
				disk := layers(fmt.Sprintf("a-%d", i), one, two)
				for range times / atOnce {
					_, err := m.Attach(within(t), disk)
					if err == nil {
						err = m.Detach(within(t), disk.ID)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		wantNoDisk(t, m)
		wantDiskFiles(t, m, before)
	})
}

func TestDetachOfAnUnknownDiskIsNoError(t *testing.T) {
	m := start(t, stoppedSpec(t))
	if err := m.Detach(within(t), "never"); err != nil {
		t.Error(err)
	}
}

func TestCallsAfterTheEndSayThatTheMachineIsGone(t *testing.T) {
	m := start(t, stoppedSpec(t))
	d := hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: image(t, "a", 1), ReadOnly: true}
	if _, err := m.Attach(within(t), d); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 2)
	go func() { waiting <- m.Detach(within(t), "a") }()
	go func() { waiting <- m.WaitReady(within(t)) }()
	if err := m.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if err := m.Err(); err != nil {
		t.Errorf("a killed machine has ended with %v", err)
	}
	for range 2 {
		if err := <-waiting; !errors.Is(err, hypervisor.ErrGone) {
			t.Errorf("a call that waited: %v", err)
		}
	}
	d.ID = "b"
	if _, err := m.Attach(within(t), d); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("attach: %v", err)
	}
	if err := m.Detach(within(t), "a"); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("detach: %v", err)
	}
	if err := m.WaitReady(within(t)); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("wait: %v", err)
	}
	if _, err := m.Dial(within(t), 1024); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("dial: %v", err)
	}
	if err := m.Kill(within(t)); err != nil {
		t.Errorf("kill again: %v", err)
	}
	if m.Pid() == 0 {
		t.Error("the pid is forgotten")
	}
}
