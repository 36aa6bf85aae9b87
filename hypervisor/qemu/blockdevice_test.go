package qemu

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/test/need"
)

// loopDevice makes a block device of an image whose every byte is b.
func loopDevice(t *testing.T, b byte) string {
	t.Helper()
	need.Root(t, "to make loop devices")
	out, err := exec.Command("losetup", "--find", "--show", filled(t, b)).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	node := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", node).Run() })
	return node
}

func TestABlockDeviceOfTheHostIsADisk(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		m := start(t, spec)
		for id, readOnly := range map[string]bool{"a": true, "b": false} {
			node := loopDevice(t, id[0])
			flags := os.O_RDWR
			if readOnly {
				flags = os.O_RDONLY
			}
			f := open(t, node, flags)
			if _, err := m.Attach(within(t), hypervisor.Disk{ID: id, Driver: hypervisor.DriverRaw, Path: node, ReadOnly: readOnly, Files: []*os.File{f}}); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil { // QEMU has its own
				t.Fatal(err)
			}
			wantContents(t, m, id, extentSize, id[0])
			var access []int
			for name, all := range held(t, m) {
				if name == node {
					access = append(access, all...)
				}
			}
			if len(access) == 0 {
				t.Errorf("QEMU does not have %s open", node)
			}
			for _, flags := range access {
				if (flags&3 == os.O_RDONLY) != readOnly {
					t.Errorf("%s is open with the flags %#o, read-only %v", node, flags, readOnly)
				}
			}
		}
	})
}

func TestABlockDeviceIsNoLayer(t *testing.T) {
	m := start(t, stoppedSpec(t))
	f := open(t, loopDevice(t, 'a'), os.O_RDONLY)
	if _, err := m.Attach(within(t), layers("a", f)); err == nil || !strings.Contains(err.Error(), "regular file") {
		t.Errorf("%v", err)
	}
	wantNoDisk(t, m)
}
