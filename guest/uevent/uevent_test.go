package uevent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tree makes what sysfs shows of a disk behind a bridge. That an event wakes a
// wait is tried in a VM by the tests of cmd/erofsvm-agent: an event comes from
// a disk.
func tree(t *testing.T, disk, dev string) Finder {
	t.Helper()
	f := Finder{Sys: t.TempDir(), Dev: t.TempDir()}
	dir := filepath.Join(f.Sys, "devices/pci0000:00/0000:00:08.0/0000:01:02.0/virtio3/block", disk)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dev"), []byte(dev+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}

func find(t *testing.T, f Finder, source string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	return f.Find(ctx, Disk{Driver: Block, Source: source})
}

func TestDiskIsFoundByItsPlace(t *testing.T) {
	need.Root(t, "to make a device node")
	rdev := loopDevice(t)
	f := tree(t, "vda", fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)))
	node := filepath.Join(f.Dev, "vda")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(rdev)); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"08/02", "08.0/02.0"} {
		if got, err := find(t, f, source); err != nil || got != node {
			t.Errorf("%s: %q, %v", source, got, err)
		}
	}
	for _, source := range []string{"08/03", "02/08", "08", "08/02/00"} {
		if got, err := find(t, f, source); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), source) {
			t.Errorf("%s: %q, %v", source, got, err)
		}
	}
}

// loopDevice returns the number of a block device that can be opened.
func loopDevice(t *testing.T) uint64 {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", loop).Run(); err != nil {
			t.Errorf("losetup --detach %s: %v", loop, err)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(loop, &st); err != nil {
		t.Fatal(err)
	}
	return st.Rdev
}

// The kernel makes the node before the disk can be opened.
func TestNodeWithoutADiskBehindItIsAwaited(t *testing.T) {
	need.Root(t, "to make a device node")
	f := tree(t, "vda", "253:16")
	if err := unix.Mknod(filepath.Join(f.Dev, "vda"), unix.S_IFBLK|0o600, int(unix.Mkdev(253, 16))); err != nil {
		t.Fatal(err)
	}
	if got, err := find(t, f, "08/02"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNodeOfAnotherDeviceIsRefused(t *testing.T) {
	f := tree(t, "vda", "253:16")
	if err := os.WriteFile(filepath.Join(f.Dev, "vda"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := find(t, f, "08/02"); err == nil || !strings.Contains(err.Error(), "253:16") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNodeThatIsNotThereYetIsAwaited(t *testing.T) {
	if got, err := find(t, tree(t, "vda", "253:16"), "08/02"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestMalformedPlaceIsRefusedAtOnce(t *testing.T) {
	f := Finder{Sys: t.TempDir(), Dev: t.TempDir()}
	for _, source := range []string{"", "/", "2/0", "08/", "../..", "08/*", "08/0G", "08.9/00", "08/02\n", "/dev/vda", strings.Repeat("08/", 8) + "08"} {
		if _, err := f.Find(t.Context(), Disk{Driver: Block, Source: source}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", source, err)
		}
	}
	for _, source := range []string{"", "0", ":", "0:", "00:1", "256:0", "0:16384", "1:2:3", "*:0", "-1:0", "0:0\n", "08/02"} {
		if _, err := f.Find(t.Context(), Disk{Driver: SCSI, Source: source}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("scsi %q: %v", source, err)
		}
	}
	for _, partition := range []int{-1, MaxPartition + 1} {
		if _, err := f.Find(t.Context(), Disk{Driver: Block, Source: "08/02", Partition: partition}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("partition %d: %v", partition, err)
		}
	}
	if _, err := f.Find(t.Context(), Disk{Driver: "9p", Source: "08/02"}); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("another driver: %v", err)
	}
}

// partition adds what sysfs shows of a partition, and its node.
func partition(t *testing.T, f Finder, disk, name, number string, rdev uint64) {
	t.Helper()
	dir := filepath.Join(disk, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"partition": number, "dev": fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(f.Dev, name), unix.S_IFBLK|0o600, int(rdev)); err != nil {
		t.Fatal(err)
	}
}

func TestPartitionIsFoundByItsNumber(t *testing.T) {
	need.Root(t, "to make a device node")
	rdev := loopDevice(t)
	for disk, names := range map[string][2]string{"vda": {"vda1", "vda12"}, "vd1": {"vd1p1", "vd1p12"}} {
		f := tree(t, disk, "253:0")
		dir := filepath.Join(f.Sys, "devices/pci0000:00/0000:00:08.0/0000:01:02.0/virtio3/block", disk)
		partition(t, f, dir, names[0], "1", rdev)
		partition(t, f, dir, names[1], "12", rdev)
		for number, want := range map[int]string{1: names[0], 12: names[1]} {
			got, err := f.Find(t.Context(), Disk{Driver: Block, Source: "08/02", Partition: number})
			if err != nil || got != filepath.Join(f.Dev, want) {
				t.Errorf("partition %d: %q, %v, want %s", number, got, err, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := f.Find(ctx, Disk{Driver: Block, Source: "08/02", Partition: 2})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "08/02 partition 2") || !strings.Contains(err.Error(), "found 2 partitions") {
			t.Errorf("a partition that is not there: %v", err)
		}
	}
}

// The scan is written before the unit is there, so it is in the file when the
// wait ends.
func TestUnitIsLookedForAtTheControllerOfVirtio(t *testing.T) {
	f := Finder{Sys: t.TempDir(), Dev: t.TempDir()}
	for host, driver := range map[string]string{"host0": "ahci", "host3": "virtio_scsi"} {
		dir := filepath.Join(f.Sys, "class/scsi_host", host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{"proc_name": driver + "\n", "scan": ""} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := f.Find(ctx, Disk{Driver: SCSI, Source: "2:17"}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "scsi 2:17") {
		t.Errorf("%v", err)
	}
	for host, want := range map[string]string{"host0": "", "host3": "0 2 17"} {
		if got, err := os.ReadFile(filepath.Join(f.Sys, "class/scsi_host", host, "scan")); string(got) != want {
			t.Errorf("%s: scan %q, %v, want %q", host, got, err, want)
		}
	}
}

func TestEventIsReadByItsKeys(t *testing.T) {
	event := Parse([]byte("change@/devices/virtual/block/dm-0\x00ACTION=change\x00SUBSYSTEM=block\x00DM_VERITY_ERR_BLOCK_NR=0,7\x00EMPTY=\x00A=b=c\x00"))
	for key, want := range map[string]string{"ACTION": "change", "SUBSYSTEM": "block", "DM_VERITY_ERR_BLOCK_NR": "0,7", "EMPTY": "", "A": "b=c", "B": "", "": ""} {
		if got := event.Get(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	for _, text := range []string{"", "\x00", "add@/x", "SUBSYSTEM=block\x00"} {
		if got := Parse([]byte(text)).Get("SUBSYSTEM"); got != "" {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestWaitForAnEventEndsWithItsContextOrItsSocket(t *testing.T) {
	events, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for err == nil { // something may happen on this machine meanwhile
		_, err = events.Next(ctx)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the context: %v", err)
	}
	if err := events.Close(); err != nil {
		t.Error(err)
	}
	if _, err := events.Next(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func FuzzPCIPathsAreWhatTheExpressionSays(f *testing.F) {
	for _, s := range []string{"", "02", "02/00", "02.1/1f.7", "2", "02/", "/02", "02.", "02.8", "02..1", "0G", "01/02/03/04/05/06/07/08", "01/02/03/04/05/06/07/08/09"} {
		f.Add(s)
	}
	like := regexp.MustCompile(`^[0-9a-f]{2}(\.[0-7])?(/[0-9a-f]{2}(\.[0-7])?){0,7}$`)
	f.Fuzz(func(t *testing.T, s string) {
		if is := isPCIPath(s); is != like.MatchString(s) {
			t.Errorf("%q is a PCI path: %v", s, is)
		}
	})
}
