package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qmp"
)

// ErrNICExists is wrapped by an AttachNIC whose ID is in use.
var ErrNICExists = errors.New("network interface is attached already")

// maxQueues is how many pairs of queues a NIC can have: QEMU takes no more
// descriptors of a tap (net/tap.c, MAX_TAP_QUEUES).
const maxQueues = 1024

// nic is a network interface that has a slot.
type nic struct {
	id string
	plug
	// lent are the names of descriptors that QEMU may still have outside of a
	// netdev, and netdev that it may have that. Guarded by turn.
	lent   []string
	netdev bool
}

func (n *nic) netdevName() string { return "net-" + n.id }

// AttachNIC implements hypervisor.VM.
func (m *Machine) AttachNIC(ctx context.Context, want hypervisor.NIC) (hypervisor.Attachment, error) {
	n, err := m.attachNIC(ctx, want)
	if err != nil {
		return hypervisor.Attachment{}, fmt.Errorf("attach network interface %q (%s): %w", want.ID, want.MAC, gone(err))
	}
	return hypervisor.Attachment{PCIPath: n.slot.pciPath()}, nil
}

func (m *Machine) attachNIC(ctx context.Context, want hypervisor.NIC) (*nic, error) {
	if err := checkNIC(want); err != nil {
		return nil, err
	}
	n, err := m.reserveNIC(want.ID)
	if err != nil {
		return nil, err
	}
	defer n.release()

	err = m.rest(ctx, &n.plug)
	var fds, vhostfds []string
	if err == nil {
		fds, err = m.lendNamed(ctx, n, "fd", want.Queues)
	}
	if err == nil {
		vhostfds, err = m.lendNamed(ctx, n, "vhostfd", want.Vhost)
	}
	// What times out may have happened, so it counts as done to the rollback.
	if err == nil {
		err = m.proc.monitor.Execute(ctx, "netdev_add", netdev(n, fds, vhostfds), nil)
		n.netdev = !refused(err)
		if err == nil {
			n.lent = nil // it has taken them
		}
	}
	if err == nil {
		err = m.proc.monitor.Execute(ctx, "device_add", nicDevice(n, want), nil)
		n.there, n.plugged = !refused(err), err == nil
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		if undoErr := m.removeNIC(undo, n); undoErr != nil && !errors.Is(undoErr, qmp.ErrClosed) {
			err = errors.Join(err, fmt.Errorf("roll back: %w", undoErr))
		}
		return nil, err
	}
	return n, nil
}

// reserveNIC takes a slot and the ID, and the turn of the NIC.
func (m *Machine) reserveNIC(id string) (*nic, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.nics[id] != nil {
		return nil, ErrNICExists
	}
	slot, ready, err := m.nicSlots.take()
	if err != nil {
		return nil, err
	}
	n := &nic{id: id, plug: newPlug("nic-"+id, "the network interface at "+slot.pciPath(), slot, ready)}
	m.nics[id] = n
	return n, nil
}

// lendNamed gives QEMU duplicates of files, and returns their names there.
func (m *Machine) lendNamed(ctx context.Context, n *nic, kind string, files []*os.File) ([]string, error) {
	var names []string
	for i, f := range files {
		name := n.netdevName() + "-" + kind + strconv.Itoa(i)
		n.lent = append(n.lent, name)
		if err := m.proc.monitor.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": name}, nil, f); err != nil {
			return nil, fmt.Errorf("hand over %s: %w", f.Name(), err)
		}
		names = append(names, name)
	}
	return names, nil
}

// netdev is the argument of netdev_add, which takes the descriptors out of the
// monitor's list. Several are joined by ':' (net/tap.c, get_fds).
func netdev(n *nic, fds, vhostfds []string) map[string]any {
	options := map[string]any{"type": "tap", "id": n.netdevName(), "vhost": len(vhostfds) > 0}
	plural := ""
	if len(fds) > 1 {
		plural = "s"
	}
	options["fd"+plural] = strings.Join(fds, ":")
	if len(vhostfds) > 0 {
		options["vhostfd"+plural] = strings.Join(vhostfds, ":")
	}
	return options
}

// nicDevice is the argument of device_add. Nothing boots from the network, so
// that no ROM is looked for.
func nicDevice(n *nic, want hypervisor.NIC) map[string]any {
	options := map[string]any{
		"driver": "virtio-net-pci", "id": n.name, "netdev": n.netdevName(), "mac": want.MAC.String(),
		"bus": n.slot.bus(), "addr": n.slot.addr(), "disable-legacy": "on", "romfile": "",
	}
	if want.MTU > 0 {
		options["host_mtu"] = want.MTU
	}
	if queues := len(want.Queues); queues > 1 {
		// One for each queue, one for the control queue, one for changes of the
		// configuration.
		options["mq"], options["vectors"] = true, 2*queues+2
	}
	return options
}

func checkNIC(n hypervisor.NIC) error {
	switch {
	case !isDiskID(n.ID):
		return errors.New("the ID must be 1 to 20 letters, digits and '-', and not begin with '-'")
	case len(n.MAC) != 6 || n.MAC[0]&1 != 0:
		return fmt.Errorf("%q is no MAC of an interface", n.MAC)
	case n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535):
		return fmt.Errorf("the MTU %d is not between 68 and 65535", n.MTU)
	case len(n.Queues) == 0 || len(n.Queues) > maxQueues:
		return fmt.Errorf("%d queues are not between 1 and %d", len(n.Queues), maxQueues)
	case len(n.Vhost) != 0 && len(n.Vhost) != len(n.Queues):
		return fmt.Errorf("%d descriptors of vhost-net for %d queues", len(n.Vhost), len(n.Queues))
	}
	for _, f := range n.Queues {
		if err := control(f, isTap); err != nil {
			return fmt.Errorf("%s is no tap with virtio-net headers: %w", f.Name(), err)
		}
	}
	for _, f := range n.Vhost {
		if err := control(f, isVhost); err != nil {
			return fmt.Errorf("%s is no vhost-net: %w", f.Name(), err)
		}
	}
	return nil
}

// isTap and isVhost ask what QEMU must not find out: it keeps a descriptor that
// turns out to be no tap, and 7.2 aborts on one that is no vhost-net.
func isTap(fd int) error {
	request, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, request)
	}
	if err == nil && request.Uint16()&unix.IFF_VNET_HDR == 0 {
		err = errors.New("it has no IFF_VNET_HDR")
	}
	return err
}

func isVhost(fd int) error {
	// VHOST_GET_FEATURES, _IOR(0xAF, 0x00, __u64) of linux/vhost.h.
	const vhostGetFeatures = 0x8008af00
	var features uint64
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), vhostGetFeatures, uintptr(unsafe.Pointer(&features))); e != 0 {
		return os.NewSyscallError("ioctl(VHOST_GET_FEATURES)", e)
	}
	return nil
}

// control calls f with the descriptor, which cannot be closed meanwhile.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var answer error
	if err := raw.Control(func(fd uintptr) { answer = f(int(fd)) }); err != nil {
		return err
	}
	return answer
}

// DetachNIC implements hypervisor.VM. After an error the NIC can be half gone; it
// keeps its slot, and DetachNIC goes on where it stopped.
func (m *Machine) DetachNIC(ctx context.Context, id string) error {
	m.mu.Lock()
	n := m.nics[id]
	m.mu.Unlock()
	if n == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	if err := n.await(ctx); err != nil {
		return fmt.Errorf("detach network interface %q: %w", id, err)
	}
	defer n.release()
	if err := m.removeNIC(ctx, n); err != nil {
		return fmt.Errorf("detach network interface %q: %w", id, gone(err))
	}
	return nil
}

// removeNIC takes from QEMU what it has of n, and gives the slot back. The caller
// holds the turn of n. Removing what is removed is no error.
func (m *Machine) removeNIC(ctx context.Context, n *nic) error {
	if err := m.unplug(ctx, &n.plug); err != nil {
		return err
	}
	if n.netdev {
		err := m.proc.monitor.Execute(ctx, "netdev_del", map[string]any{"id": n.netdevName()}, nil)
		if err != nil && !qmp.IsClass(err, qmp.ClassDeviceNotFound) {
			return err
		}
		n.netdev = false
	}
	for len(n.lent) > 0 {
		last := len(n.lent) - 1
		err := m.proc.monitor.Execute(ctx, "closefd", map[string]any{"fdname": n.lent[last]}, nil)
		if err != nil && !refused(err) { // refused: there is none of that name
			return fmt.Errorf("take back descriptors: %w", err)
		}
		n.lent = n.lent[:last]
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.nics[n.id] == n {
		delete(m.nics, n.id)
		m.nicSlots.giveBack(n.slot, n.ready)
	}
	return nil
}
