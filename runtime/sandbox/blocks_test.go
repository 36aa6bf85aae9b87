package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/need"
)

// loopDevice makes a block device of a file, and returns its number.
func loopDevice(t *testing.T) (major, minor uint32) {
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
	node := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", node).Run() })
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		t.Fatal(err)
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev)
}

func deviceSpec(path string, major, minor uint32, access string) string {
	return fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{"devices":[{"path":%q,"type":"b","major":%d,"minor":%d}],
		"resources":{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":%d,"minor":%d,"access":%q}]}}}`, path, major, minor, major, minor, access)
}

func TestABlockDeviceIsADiskThatGoesWithItsContainer(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	major, minor := loopDevice(t)
	w.createdAs(t, "a", "")
	r := w.createdAs(t, "c", deviceSpec("/dev/xda", major, minor, "rwm"))
	d := r.GetDevices()
	if len(d) != 1 || d[0].GetType() != "blk" || d[0].GetId() != "02/00" || d[0].GetContainerPath() != "/dev/xda" {
		t.Errorf("the agent has %v", d)
	}
	if !slices.Contains(w.vm.attached(), "c2-block-0") {
		t.Errorf("attached are %q", w.vm.attached())
	}
	if _, err := w.Delete(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(w.vm.attached(), "c2-block-0") {
		t.Error("the disk outlives its container")
	}
}

func TestABlockDeviceThatIsNotThereFailsTheCreation(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	_, err := w.Create(t.Context(), w.request(t, "c", deviceSpec("/dev/xda", 4000, 1000000, "r")))
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/dev/xda") {
		t.Errorf("%v", err)
	}
}
