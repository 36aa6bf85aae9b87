package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qmp"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
	"github.com/erofsvm/erofsvm/test/need"
)

// What this package does rests on the following facts about QEMU, of which its
// documentation says nothing. Those about VMDK descriptors are tested where the
// descriptors are made.

// ask executes a QMP command and returns QEMU's words if it refuses.
func ask(t *testing.T, m *Machine, command string, args map[string]any) string {
	t.Helper()
	err := m.proc.monitor.Execute(within(t), command, args, nil)
	var refusal *qmp.Error
	switch {
	case err == nil:
		return ""
	case !errors.As(err, &refusal):
		t.Fatal(err)
	}
	return refusal.Desc
}

// wantRefused fails unless QEMU refuses with these words.
func wantRefused(t *testing.T, m *Machine, command string, args map[string]any, words string) {
	t.Helper()
	if said := ask(t, m, command, args); said == "" || !strings.Contains(said, words) {
		t.Errorf("%s %v: QEMU says %q, want %q", command, args, said, words)
	}
}

func TestFactUnplugIsOneRequestUntilTheGuestAnswers(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		m := start(t, spec)
		attach(t, m, "a", true)
		device, node := map[string]any{"id": "virtio-a"}, map[string]any{"node-name": "disk-a"}
		wantRefused(t, m, "blockdev-del", node, "is in use")
		if said := ask(t, m, "device_del", device); said != "" {
			t.Errorf("device_del: %s", said)
		}
		wantRefused(t, m, "device_del", device, "already in the process of unplug")
		wantRefused(t, m, "blockdev-del", node, "is in use")
	})
}

func TestFactAddrIsHexadecimal(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		p, err := launch(spec.Binary, []string{
			"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "tcg", "-S",
			"-device", "virtio-rng-pci,id=probe,bus=pcie.0,addr=10",
			"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.kill(within(t)); err != nil {
				t.Error(err)
			}
		})
		var buses []struct {
			Devices []struct {
				ID   string `json:"qdev_id"`
				Slot int    `json:"slot"`
			} `json:"devices"`
		}
		err = p.handshake(within(t))
		if err == nil {
			err = p.monitor.Execute(within(t), "query-pci", nil, &buses)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range buses[0].Devices {
			if d.ID == "probe" && d.Slot == 0x10 {
				return
			}
		}
		t.Errorf("addr=10 is elsewhere: %+v", buses)
	})
}

// A file that one VM writes to can be no other's disk, and a file that one reads
// can be any other's to read.
func TestFactFilesAreLockedBetweenVMs(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.BlockDriver = VirtioSCSI
		m := start(t, spec)
		spec.Dir = filepath.Join(shortDir(t), "vm")
		other := start(t, spec)
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		f := open(t, path, os.O_RDWR)
		for _, way := range []string{"by path", "by descriptor"} {
			t.Run(way, func(t *testing.T) {
				disk := func(readOnly bool) hypervisor.Disk {
					d := hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Path: path, ReadOnly: readOnly}
					if way == "by descriptor" {
						d.Files = []*os.File{f}
					}
					return d
				}
				for _, first := range []bool{true, false} {
					if _, err := m.Attach(within(t), disk(first)); err != nil {
						t.Fatal(err)
					}
					for _, second := range []bool{true, false} {
						_, err := other.Attach(within(t), disk(second))
						if both := first && second; both != (err == nil) || !both && !strings.Contains(err.Error(), "lock") {
							t.Errorf("read-only is %v, and in the other VM %v: %v", first, second, err)
						}
						if err := other.Detach(within(t), "a"); err != nil {
							t.Error(err)
						}
					}
					if err := m.Detach(within(t), "a"); err != nil {
						t.Error(err)
					}
				}
			})
		}
	})
}

// A set is asked for a descriptor of the access that the node needs, and that is
// the only thing that tells those in it apart.
func TestFactASetGivesByAccess(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		m := start(t, spec)
		one, two := open(t, filled(t, 1), os.O_RDONLY), open(t, filled(t, 2), os.O_RDONLY)
		give := func(set int, f *os.File) {
			t.Helper()
			if err := m.proc.monitor.ExecuteWithFile(within(t), "add-fd", map[string]any{"fdset-id": set}, nil, f); err != nil {
				t.Fatal(err)
			}
		}
		node := func(set int, readOnly bool) map[string]any {
			return map[string]any{"driver": "file", "node-name": fmt.Sprintf("disk-set-%d", set),
				"filename": fmt.Sprintf("/dev/fdset/%d", set), "read-only": readOnly, "auto-read-only": false}
		}
		wantRefused(t, m, "add-fd", map[string]any{"fdset-id": 1}, "No file descriptor supplied")
		wantRefused(t, m, "blockdev-add", node(1, true), "")
		give(1, one)
		give(2, one)
		give(2, two)
		wantRefused(t, m, "blockdev-add", node(1, false), "")
		for _, set := range []int{1, 2} {
			if said := ask(t, m, "blockdev-add", node(set, true)); said != "" {
				t.Fatal(said)
			}
		}
		wantContents(t, m, "set-1", extentSize, 1)
		if b := contents(t, m, "set-2")[0]; b != 1 && b != 2 {
			t.Errorf("a set of two files has %d", b)
		}
	})
}

func TestFactNetdevJoinsDescriptorsWithAColon(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		m := start(t, spec)
		for i, queue := range taps(t, 2) {
			if err := m.proc.monitor.ExecuteWithFile(within(t), "getfd", map[string]any{"fdname": fmt.Sprintf("q%d", i)}, nil, queue); err != nil {
				t.Fatal(err)
			}
		}
		netdev := func(fds string) map[string]any {
			return map[string]any{"type": "tap", "id": "net", "fds": fds, "vhost": false}
		}
		wantRefused(t, m, "netdev_add", netdev("q0,q1"), "'q0,q1'")
		if said := ask(t, m, "netdev_add", netdev("q0:q1")); said != "" {
			t.Errorf("netdev_add: %s", said)
		}
	})
}

// taps are queues of one tap device, in a network namespace of its own.
func taps(t *testing.T, n int) []*os.File {
	t.Helper()
	const device = "/dev/net/tun"
	if _, err := os.Stat(device); err != nil {
		need.Missing(t, "no tap devices: %v", err)
	}
	need.Root(t, "to make a tap device")
	var queues []*os.File
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: it ends with its namespace
		failed <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			request, err := unix.NewIfreq("erofsvm%d")
			if err != nil {
				return err
			}
			for range n {
				fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
				if err != nil {
					return err
				}
				queues = append(queues, os.NewFile(uintptr(fd), device))
				request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
				if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	err := <-failed
	t.Cleanup(func() {
		for _, q := range queues {
			q.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return queues
}

// Why the memory of a VM with vhost-user is shared by this package, and QEMU is not
// left to complain: it does not.
func TestFactVhostUserWithPrivateMemoryIsSilent(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		if err := makeDir(spec.Dir); err != nil {
			t.Fatal(err)
		}
		dev, err := vsock.Open(within(t), vsock.Config{Kind: vsock.VhostUser, Daemon: spec.VsockDaemon, Dir: spec.Dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := dev.Close(within(t)); err != nil {
				t.Error(err)
			}
		})
		wiring := dev.Wiring()
		wiring.SharedMemory = false
		p, err := launch(spec.Binary, argv(spec.withDefaults(), AcceleratorTCG, wiring), wiring.File)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.kill(within(t)); err != nil {
				t.Error(err)
			}
		})
		dev.Release()
		if err := p.handshake(within(t)); err != nil {
			t.Errorf("QEMU minds: %v", err)
		}
		var properties []struct{ Name string }
		if err := p.monitor.Execute(within(t), "qom-list", map[string]any{"path": "/machine/peripheral/vsock"}, &properties); err != nil || len(properties) == 0 {
			t.Errorf("there is no vsock device: %v", err)
		}
		if said := p.stderr.Lines(stderrLines); said != "" {
			t.Errorf("QEMU says %q", said)
		}
	})
}

// A full filesystem of the host must not stop the VM (werror=enospc, the default).
func TestFactErrorsOfTheHostAreReportedToTheGuest(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		for _, driver := range []BlockDriver{VirtioBlk, VirtioSCSI} {
			spec := spec
			spec.BlockDriver, spec.Dir = driver, filepath.Join(shortDir(t), "vm")
			m := start(t, spec)
			attach(t, m, "a", false)
			for _, name := range []string{"werror", "rerror"} {
				var value string
				path := map[string]any{"path": "/machine/peripheral/virtio-a", "property": name}
				if driver == VirtioBlk {
					path["path"] = "/machine/peripheral/virtio-a/virtio-backend"
				}
				if do(t, m, "qom-get", path, &value); value != "report" {
					t.Errorf("%s: %s is %q", driver, name, value)
				}
			}
		}
	})
}
