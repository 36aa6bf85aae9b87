package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/test/need"
)

// running is a VM with a guest in it, shared by tests that leave no disk behind.
type running struct {
	*Machine
	guest *guest
}

// TestDisksOfARunningGuest has what takes a guest to be seen. Each kind of disk has
// one VM.
func TestDisksOfARunningGuest(t *testing.T) {
	eachDriver(t, func(t *testing.T, with func(Spec) Spec) {
		spec := with(guestSpec(t))
		spec.DiskSlots, spec.NICSlots, spec.NetNS = 128, 2, newNetNS(t)
		m := start(t, spec)
		// The first one before the guest can have found its bridges.
		first := attach(t, m, "first", false)
		if err := m.WaitReady(within(t)); err != nil {
			t.Fatal(err)
		}
		t.Logf("phases: %+v", m.Timings())
		dial(t, m).wantDisk("first", first, 1<<20, false)
		if err := m.Detach(within(t), "first"); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			name string
			do   func(*testing.T, running)
		}{
			{"disks come and go", testDisksComeAndGo},
			{"128 disks at once", testAsManyDisksAsSlots},
			{"slots are used again", testSlotsAreUsedAgain},
			{"a guest that does not answer", testDetachGoesOn},
			{"a mounted disk", testDetachOfAMountedDisk},
			{"discard reaches the file", testDiscardReachesTheFile},
			{"a full host", testFullHost},
			{"network interfaces", testNICsComeAndGo},
		} {
			t.Run(test.name, func(t *testing.T) {
				began := time.Now()
				vm := running{m, dial(t, m)}
				test.do(t, vm)
				vm.guest.disks(0)
				wantNoDisk(t, m)
				t.Logf("%v", time.Since(began).Round(time.Millisecond))
			})
		}
	})
}

// wantDisk fails unless the guest has this disk and no other.
func (g *guest) wantDisk(id string, at hypervisor.Attachment, bytes int64, readOnly bool) guestDisk {
	g.t.Helper()
	d := g.disks(1)[id]
	if d.place() != at || d.Bytes != bytes || d.ReadOnly != readOnly {
		g.t.Fatalf("the disk %q, attached at %+v, is %+v", id, at, d)
	}
	return d
}

func testDisksComeAndGo(t *testing.T, vm running) {
	// Past the first bridge, all at once.
	const n = 33
	places := make([]hypervisor.Attachment, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { places[i] = attach(t, vm.Machine, fmt.Sprintf("more-%d", i), true) })
	}
	all.Wait()
	disks := vm.guest.disks(n)
	for i, place := range places {
		if d := disks[fmt.Sprintf("more-%d", i)]; d.place() != place || !d.ReadOnly {
			t.Errorf("disk attached at %s is %+v", place, d)
		}
	}
	var sum struct{ SHA256 string }
	vm.guest.ask(&sum, "sum %s", disks["more-7"].Name)
	if want := imageSum(t, "more-7"); sum.SHA256 != want {
		t.Errorf("the guest reads %s, want %s", sum.SHA256, want)
	}

	for i := range n {
		for range 2 { // two calls for one disk, at the same time as all others
			all.Go(func() {
				if err := vm.Detach(within(t), fmt.Sprintf("more-%d", i)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	vm.guest.disks(0)
}

func (vm running) detach(t *testing.T, id string) {
	t.Helper()
	if err := vm.Detach(within(t), id); err != nil {
		t.Error(err)
	}
}

func imageSum(t *testing.T, id string) string {
	t.Helper()
	b, err := os.ReadFile(image(t, id, 1))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// shared is a disk of a file that others have, too.
func shared(id string, f *os.File) hypervisor.Disk {
	return hypervisor.Disk{ID: id, Driver: hypervisor.DriverRaw, ReadOnly: true, Files: []*os.File{f}}
}

func testAsManyDisksAsSlots(t *testing.T, vm running) {
	f := open(t, image(t, "shared", 1), os.O_RDONLY)
	const n = 128
	places := make([]hypervisor.Attachment, n)
	id := func(i int) string { return fmt.Sprintf("d-%d", i) }
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			var err error
			if places[i], err = vm.Attach(within(t), shared(id(i), f)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	disks := vm.guest.disks(n)
	for i, place := range places {
		if d := disks[id(i)]; d.place() != place || d.Bytes != 1<<20 || !d.ReadOnly {
			t.Errorf("disk attached at %+v is %+v", place, d)
		}
	}
	for _, i := range []int{0, n - 1} {
		var sum struct{ SHA256 string }
		vm.guest.ask(&sum, "sum %s", disks[id(i)].Name)
		if sum.SHA256 != imageSum(t, "shared") {
			t.Errorf("disk %d reads as %s", i, sum.SHA256)
		}
	}
	_, err := vm.Attach(within(t), shared("more", f))
	if !errors.Is(err, ErrNoSlot) || !strings.Contains(err.Error(), "raise hypervisor.slots") {
		t.Errorf("one too many: %v", err)
	}
	for i := range n {
		all.Go(func() { vm.detach(t, id(i)) })
	}
	all.Wait()
	vm.guest.disks(0)
}

// What comes into a slot stays, however often others came and went there before.
// An emulated guest takes up to a quarter of a second for each, so that the
// times are fewer on a machine that is busy.
func testSlotsAreUsedAgain(t *testing.T, vm running) {
	f := open(t, image(t, "shared", 1), os.O_RDONLY)
	before := diskFiles(t, vm.Machine)
	const times, atOnce, enough = 1000, 20, 45 * time.Second
	var done atomic.Int64
	began := time.Now()
	var all sync.WaitGroup
	for i := range atOnce {
		all.Go(func() {
			for time.Since(began) < enough && done.Load() < times {
				id := fmt.Sprintf("again-%d", i)
				a, err := vm.Attach(within(t), shared(id, f))
				if err == nil {
					err = vm.Detach(within(t), id)
				}
				if err != nil {
					t.Errorf("%+v: %v", a, err)
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	t.Logf("%d times in %v", done.Load(), time.Since(began))
	if done.Load() < int64(vm.spec.DiskSlots) {
		t.Errorf("no slot was used again: %d disks came and went", done.Load())
	}
	vm.guest.disks(0)
	wantDiskFiles(t, vm.Machine, before)
	// An eject that comes too late would take one of these.
	for i := range vm.spec.DiskSlots {
		all.Go(func() {
			if _, err := vm.Attach(within(t), shared(fmt.Sprintf("stays-%d", i), f)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	vm.guest.disks(vm.spec.DiskSlots)
	for i := range vm.spec.DiskSlots {
		all.Go(func() { vm.detach(t, fmt.Sprintf("stays-%d", i)) })
	}
	all.Wait()
	vm.guest.disks(0)
}

// testDetachGoesOn has a guest whose processors stand still.
func testDetachGoesOn(t *testing.T, vm running) {
	at := attach(t, vm.Machine, "a", true)
	vm.guest.disks(1)
	do(t, vm.Machine, "stop", nil, nil)
	for range 2 {
		if vm.spec.BlockDriver == VirtioSCSI {
			vm.detach(t, "a") // QEMU does not ask the guest
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err := vm.Detach(ctx, "a")
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `detach "a"`) || !strings.Contains(err.Error(), at.PCIPath) {
			t.Errorf("error is %v", err)
		}
	}
	do(t, vm.Machine, "cont", nil, nil)
	if vm.spec.BlockDriver == VirtioSCSI {
		vm.guest.disks(0) // it hears of that only now
	}
	other := attach(t, vm.Machine, "b", true)
	if other == at {
		t.Errorf("two disks were at %+v", at)
	}
	vm.detach(t, "a")
	vm.guest.wantDisk("b", other, 1<<20, true)
	vm.detach(t, "b")
}

// ext4 makes a filesystem in a file.
func ext4(t *testing.T, mib int) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ext4.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("mkfs.ext4", "-q", "-O", "^has_journal", path, fmt.Sprintf("%dM", mib))
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return open(t, path, os.O_RDWR)
}

// testDetachOfAMountedDisk: no guest refuses to let go. Linux ejects a PCI device
// whose driver is in use (drivers/pci/hotplug/acpiphp_glue.c,
// acpiphp_disable_and_eject_slot), and for a SCSI disk it is not asked. What is
// mounted then fails, and what was not written is lost: whoever detaches has the
// guest unmount first.
func testDetachOfAMountedDisk(t *testing.T, vm running) {
	at, err := vm.Attach(within(t), hypervisor.Disk{ID: "fs", Driver: hypervisor.DriverRaw, Files: []*os.File{ext4(t, 16)}})
	if err != nil {
		t.Fatal(err)
	}
	name := vm.guest.wantDisk("fs", at, 16<<20, false).Name
	vm.guest.must("mount %s ext4", name)
	vm.guest.must("fill /tmp/%s/a %d", name, 1<<20)
	vm.detach(t, "fs")
	vm.guest.disks(0)
	if err := vm.guest.does("fill /tmp/%s/b %d", name, 1<<20); err == nil {
		t.Error("a filesystem without its disk is written to")
	} else {
		t.Logf("a write after that: %v", err)
	}
	vm.guest.must("unmount %s", name)

	next := attach(t, vm.Machine, "next", true)
	vm.guest.wantDisk("next", next, 1<<20, true)
	vm.detach(t, "next")
	vm.guest.disks(0)
}

// used is how much of the host's disk a file takes.
func used(t *testing.T, f *os.File) int64 {
	t.Helper()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func testDiscardReachesTheFile(t *testing.T, vm running) {
	const data = 8 << 20
	for name, tc := range map[string]struct {
		write, discard func(name string)
	}{
		"of the disk": {
			func(name string) { vm.guest.must("fill /dev/%s %d", name, data) },
			func(name string) { vm.guest.must("discard %s", name) },
		},
		"of a filesystem": {
			func(name string) {
				vm.guest.must("mount %s ext4", name)
				vm.guest.must("fill /tmp/%s/a %d", name, data)
			},
			func(name string) {
				vm.guest.must("remove /tmp/%s/a", name)
				vm.guest.must("trim %s", name)
				vm.guest.must("unmount %s", name)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := ext4(t, 32)
			at, err := vm.Attach(within(t), hypervisor.Disk{ID: "d", Driver: hypervisor.DriverRaw, Files: []*os.File{f}})
			if err != nil {
				t.Fatal(err)
			}
			disk := vm.guest.wantDisk("d", at, 32<<20, false).Name
			tc.write(disk)
			full := used(t, f)
			tc.discard(disk)
			if trimmed := used(t, f); full < data || trimmed > full-data {
				t.Errorf("the file takes %d bytes full and %d after the discard", full, trimmed)
			}
			vm.detach(t, "d")
			vm.guest.disks(0)
		})
	}
}

// testFullHost has a disk on a host's filesystem that is smaller than the disk.
func testFullHost(t *testing.T, vm running) {
	f := onSmallFilesystem(t, 1<<20, 16<<20)
	at, err := vm.Attach(within(t), hypervisor.Disk{ID: "full", Driver: hypervisor.DriverRaw, Files: []*os.File{f}})
	if err != nil {
		t.Fatal(err)
	}
	name := vm.guest.wantDisk("full", at, 16<<20, false).Name
	if err := vm.guest.does("fill /dev/%s %d", name, 4<<20); err == nil {
		t.Error("the guest writes 4 MiB to a filesystem of 1 MiB")
	} else {
		t.Logf("the guest sees: %v", err)
	}
	var status struct{ Status string }
	if do(t, vm.Machine, "query-status", nil, &status); status.Status != "running" {
		t.Errorf("the VM is %s", status.Status)
	}
	var sum struct{ Bytes int64 }
	if vm.guest.ask(&sum, "sum %s", name); sum.Bytes != 16<<20 {
		t.Errorf("the guest reads %d bytes of the disk", sum.Bytes)
	}
	vm.detach(t, "full")
	vm.guest.disks(0)
}

// onSmallFilesystem makes a sparse file on a tmpfs that is mounted nowhere.
func onSmallFilesystem(t *testing.T, filesystem, size int64) *os.File {
	t.Helper()
	need.Root(t, "to make a filesystem")
	must := func(fd int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	fs := must(unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC))
	defer unix.Close(fs)
	must(0, unix.FsconfigSetString(fs, "size", fmt.Sprint(filesystem)))
	must(0, unix.FsconfigCreate(fs))
	mount := must(unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0))
	defer unix.Close(mount)
	f := os.NewFile(uintptr(must(unix.Openat(mount, "disk", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600))), "disk")
	t.Cleanup(func() { f.Close() })
	must(0, f.Truncate(size))
	return f
}
