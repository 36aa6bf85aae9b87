package blockdev

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/need"
)

var host = Host{Sys: "/sys", Dev: "/dev"}

// loop makes a block device of a file, and returns its node and number.
func loop(t *testing.T) (node string, major, minor uint32) {
	t.Helper()
	need.Root(t, "to make loop devices")
	file := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	node = strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", node).Run() })
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		t.Fatal(err)
	}
	return node, unix.Major(st.Rdev), unix.Minor(st.Rdev)
}

func TestADeviceIsOpenedByItsNumber(t *testing.T) {
	node, major, minor := loop(t)
	for _, readOnly := range []bool{true, false} {
		f, err := host.Open(major, minor, readOnly)
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil || f.Name() != node || (flags&unix.O_ACCMODE == unix.O_RDONLY) != readOnly {
			t.Errorf("%s with flags %#x, %v; want %s, read-only %v", f.Name(), flags, err, node, readOnly)
		}
		f.Close()
	}
}

func TestADeviceThatTheHostUsesIsNotWrittenTo(t *testing.T) {
	node, major, minor := loop(t)
	user, err := os.OpenFile(node, os.O_RDWR|unix.O_EXCL, 0) // what a mount does
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	if _, err := host.Open(major, minor, false); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("for writing: %v", err)
	}
	f, err := host.Open(major, minor, true)
	if err != nil {
		t.Fatalf("for reading: %v", err)
	}
	f.Close()
}

func TestWhatIsNotTheDeviceIsRefused(t *testing.T) {
	if _, err := host.Open(4095, 1048575, true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
	for name, c := range map[string]struct {
		uevent string
		class  func(error) bool
	}{
		"another device": {"MAJOR=7\nDEVNAME=null\n", errdefs.IsFailedPrecondition},
		"a way out":      {"DEVNAME=../../dev/null\n", errdefs.IsNotFound},
		"no name":        {"MAJOR=7\n", errdefs.IsNotFound},
	} {
		sys := t.TempDir()
		dir := filepath.Join(sys, "dev/block/7:0")
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "uevent"), []byte(c.uevent), 0o600)); err != nil {
			t.Fatal(err)
		}
		if f, err := (Host{Sys: sys, Dev: "/dev"}).Open(7, 0, true); !c.class(err) {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}
