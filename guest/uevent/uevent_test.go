package uevent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
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
	return f.Find(ctx, source)
}

func TestDiskIsFoundByItsPlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a device node: the effective user id is not 0")
	}
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
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a device node: the effective user id is not 0")
	}
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
		if _, err := f.Find(t.Context(), source); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", source, err)
		}
	}
}
