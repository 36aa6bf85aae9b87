package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/test/need"
)

// testNIC is a NIC of a tap that nothing is connected to.
func testNIC(t *testing.T, id string, last byte, queues int) hypervisor.NIC {
	t.Helper()
	return hypervisor.NIC{ID: id, MAC: net.HardwareAddr{2, 0, 0, 0, 0, last}, MTU: 1450, Queues: taps(t, queues)}
}

func attachNIC(t *testing.T, m *Machine, n hypervisor.NIC) hypervisor.Attachment {
	t.Helper()
	at, err := m.AttachNIC(within(t), n)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range n.Queues {
		f.Close() // QEMU has its own
	}
	return at
}

// placeOf is where QEMU has a device.
func placeOf(t *testing.T, m *Machine, name string) string {
	t.Helper()
	get := func(property string, value any) {
		do(t, m, "qom-get", map[string]any{"path": "/machine/peripheral/" + name, "property": property}, value)
	}
	var bus string
	var function int // with the slot in front
	get("parent_bus", &bus)
	get("addr", &function)
	return fmt.Sprintf("%s %02x", filepath.Base(bus), function>>3)
}

func tapDescriptors(t *testing.T, m *Machine) int {
	t.Helper()
	n := 0
	for path, count := range held(t, m) {
		if strings.HasPrefix(path, "/dev/net/tun") {
			n += len(count)
		}
	}
	return n
}

func wantNoNIC(t *testing.T, m *Machine, descriptors int) {
	t.Helper()
	if got := openFiles(t, m); got != descriptors {
		t.Errorf("QEMU has %d files open, and had %d before", got, descriptors)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.nics) > 0 || len(m.nicSlots.free) != m.nicSlots.count {
		t.Errorf("%d network interfaces are still known, %d of %d slots free", len(m.nics), len(m.nicSlots.free), m.nicSlots.count)
	}
}

func TestNICsHaveQueuesAndSlotsOfTheirOwn(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.DiskSlots, spec.NICSlots = 1, 2
		m := start(t, spec)
		attach(t, m, "disk", true)
		attachNIC(t, m, testNIC(t, "one", 1, 1))
		if at := attachNIC(t, m, testNIC(t, "four", 2, 4)); at != (hypervisor.Attachment{PCIPath: "08/03"}) {
			t.Errorf("the guest is to find it at %+v", at)
		}
		for name, want := range map[string]string{"virtio-disk": "bridge0 01", "nic-one": "bridge0 02", "nic-four": "bridge0 03"} {
			if got := placeOf(t, m, name); got != want {
				t.Errorf("%s is at %s, want %s", name, got, want)
			}
		}
		if _, err := m.AttachNIC(within(t), testNIC(t, "three", 3, 1)); !errors.Is(err, ErrNoSlot) {
			t.Errorf("one more than there are slots: %v", err)
		}
		if _, err := m.AttachNIC(within(t), testNIC(t, "one", 1, 1)); !errors.Is(err, ErrNICExists) {
			t.Errorf("the same one: %v", err)
		}
		if err := m.DetachNIC(within(t), "nothing"); err != nil {
			t.Errorf("one that is not attached: %v", err)
		}
	})
}

func TestAttachNICThatFailsLeavesNothing(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.DiskSlots, spec.NICSlots = 1, 8
		m := start(t, spec)
		do(t, m, "device_add", map[string]any{"driver": "virtio-rng-pci", "id": "nic-twin", "bus": bridgeID(0), "addr": "1f", "disable-legacy": "on"}, nil)
		before := openFiles(t, m)
		change := func(f func(*hypervisor.NIC)) hypervisor.NIC {
			n := testNIC(t, "a", 1, 2)
			f(&n)
			return n
		}
		file, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		for name, n := range map[string]hypervisor.NIC{
			"the device is refused":    change(func(n *hypervisor.NIC) { n.ID = "twin" }),
			"descriptors are no taps":  change(func(n *hypervisor.NIC) { n.Queues = []*os.File{file, file} }),
			"they are no vhost-net":    change(func(n *hypervisor.NIC) { n.Vhost = []*os.File{file, file} }),
			"an ID with a colon":       change(func(n *hypervisor.NIC) { n.ID = "a:b" }),
			"no MAC":                   change(func(n *hypervisor.NIC) { n.MAC = nil }),
			"a MAC of a group":         change(func(n *hypervisor.NIC) { n.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} }),
			"no queue":                 change(func(n *hypervisor.NIC) { n.Queues = nil }),
			"vhost for one of two":     change(func(n *hypervisor.NIC) { n.Vhost = n.Queues[:1] }),
			"an MTU that nothing has":  change(func(n *hypervisor.NIC) { n.MTU = 67 }),
			"a closed descriptor":      change(func(n *hypervisor.NIC) { n.Queues[1].Close() }),
			"a name with a line break": change(func(n *hypervisor.NIC) { n.ID = "a\nb" }),
		} {
			if _, err := m.AttachNIC(within(t), n); err == nil {
				t.Errorf("%s: it is attached", name)
			}
			m.mu.Lock()
			known := len(m.nics)
			m.mu.Unlock()
			if known > 0 {
				t.Fatalf("%s: it is still known", name)
			}
		}
		wantNoNIC(t, m, before)
		ctx, cancel := context.WithCancel(within(t))
		cancel()
		if _, err := m.AttachNIC(ctx, testNIC(t, "late", 1, 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		wantNoNIC(t, m, before)
	})
}

func testNICsComeAndGo(t *testing.T, vm running) {
	if got, want := netnsOf(t, fmt.Sprintf("/proc/%d/ns/net", vm.Pid())), netnsOf(t, fmt.Sprintf("/proc/self/fd/%d", vm.spec.NetNS.Fd())); got != want {
		t.Errorf("QEMU is in %v, want %v", got, want)
	}
	for range 2 { // in the same slots
		attachNIC(t, vm.Machine, testNIC(t, "first", 1, 1))
		attachNIC(t, vm.Machine, testNIC(t, "second", 2, 2))
		if got := tapDescriptors(t, vm.Machine); got != 3 {
			t.Errorf("QEMU has %d descriptors of taps, want 3", got)
		}
		for range 2 {
			for _, id := range []string{"first", "second"} {
				if err := vm.DetachNIC(within(t), id); err != nil {
					t.Error(err)
				}
			}
		}
		if got := tapDescriptors(t, vm.Machine); got != 0 {
			t.Errorf("QEMU keeps %d descriptors of taps", got)
		}
	}
}

func newNetNS(t *testing.T) *os.File {
	t.Helper()
	need.Root(t, "to make a network namespace")
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err != nil {
			made <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.file.Close() })
	return r.file
}

// netnsOf is what makes a namespace known.
func netnsOf(t *testing.T, path string) [2]uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return [2]uint64{st.Dev, st.Ino}
}
