package uevent

import (
	"context"
	"errors"
	"fmt"
	"os"
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
	f := tree(t, "vda", "253:16")
	node := filepath.Join(f.Dev, "vda")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(253, 16))); err != nil {
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
