package network

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// Model is how frames get from an interface to the virtual machine.
type Model string

const (
	// Tap makes a tap device, and has the kernel redirect each frame that one of
	// the two receives to the other one (tc-mirred(8)). It works with every kind
	// of Ethernet interface.
	Tap Model = "tap"
	// MacVTap makes a macvtap device on top of the interface, in passthru mode:
	// the interface's frames are its own. One step less than Tap, for interfaces
	// that a macvlan can stand on.
	MacVTap Model = "macvtap"
)

// Options say how to connect an interface.
type Options struct {
	Model Model
	// Queues is how many pairs of queues the device has, at least 1.
	Queues int
	// Vhost asks for the kernel's vhost-net, where the host has it.
	Vhost bool
}

// Device is an interface that a virtual machine can be given.
type Device struct {
	Interface
	// Queues are the descriptors of the tap, one for each pair of queues. They
	// carry Ethernet frames with a virtio-net header in front.
	Queues []*os.File
	// Vhost are descriptors of vhost-net, as many as Queues, or none.
	Vhost []*os.File
	// NoVhost says why there are none although they were asked for.
	NoVhost string
}

// Close closes the descriptors. The device is gone with the last one that
// anybody holds if it is a Tap.
func (d *Device) Close() {
	for _, f := range append(d.Queues, d.Vhost...) {
		f.Close()
	}
	d.Queues, d.Vhost = nil, nil
}

// ours begins the names of the devices that this package makes; the index of the
// interface follows, which fits into the 15 bytes of a name.
const ours = "erofsvm"

func deviceName(i Interface) string { return ours + strconv.Itoa(i.Index) }

func isOurs(l netlink.Link) bool {
	return strings.HasPrefix(l.Attrs().Name, ours) && (l.Type() == "tuntap" || l.Type() == "macvtap")
}

// Connect makes the device of an interface. What an earlier sandbox left behind
// there is replaced. The descriptors are the caller's to close, the device goes
// with Teardown. After an error nothing of it is left.
func (n *Namespace) Connect(i Interface, o Options) (*Device, error) {
	d, err := n.connect(i, o)
	if err != nil {
		return nil, fmt.Errorf("connect interface %s of %s: %w", i.Name, n.file.Name(), err)
	}
	return d, nil
}

func (n *Namespace) connect(i Interface, o Options) (d *Device, err error) {
	if o.Queues < 1 {
		return nil, fmt.Errorf("%d queues, at least 1", o.Queues)
	}
	if err := n.disconnect(i.Index); err != nil {
		return nil, fmt.Errorf("remove what is left from before: %w", err)
	}
	d = &Device{Interface: i}
	defer func() {
		if err != nil {
			d.Close()
			err = errors.Join(err, n.disconnect(i.Index))
			d = nil
		}
	}()
	switch o.Model {
	case Tap:
		err = n.makeTap(d, o.Queues)
	case MacVTap:
		err = n.makeMacVTap(d, o.Queues)
	default:
		err = fmt.Errorf("model %q is not tap or macvtap", o.Model)
	}
	if err == nil && o.Vhost {
		err = d.openVhost()
	}
	return d, err
}

// makeTap makes a tap as large as the interface and joins the two. It is not
// persistent: the end of the last process that has it open removes it.
func (n *Namespace) makeTap(d *Device, queues int) error {
	tap := &netlink.Tuntap{
		LinkAttrs:  netlink.LinkAttrs{Name: deviceName(d.Interface)},
		Mode:       netlink.TUNTAP_MODE_TAP,
		Flags:      netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
		NonPersist: true,
		Queues:     queues,
	}
	if queues > 1 { // else QEMU, which asks for one queue, is refused
		tap.Flags |= netlink.TUNTAP_MULTI_QUEUE
	}
	err := n.Inside(func() error {
		err := n.route.LinkAdd(tap) // a tap belongs to the namespace of the thread that opens it
		if err != nil {
			return fmt.Errorf("make a tap (/dev/net/tun): %w", err)
		}
		d.Queues = tap.Fds
		return silence(tap.Name)
	})
	if err != nil {
		return err
	}
	link, err := n.route.LinkByName(tap.Name)
	if err != nil {
		return fmt.Errorf("find the tap: %w", err)
	}
	if err := n.route.LinkSetMTU(link, d.MTU); err != nil {
		return fmt.Errorf("set the MTU of the tap to %d: %w", d.MTU, err)
	}
	if err := n.route.LinkSetUp(link); err != nil {
		return fmt.Errorf("set the tap up: %w", err)
	}
	if err := n.redirect(d.Index, link.Attrs().Index); err != nil {
		return err
	}
	return n.redirect(link.Attrs().Index, d.Index)
}

// silence keeps the namespace's own IPv6 from speaking on a device, which the
// guest would hear. The caller is on a thread of the namespace, whose settings
// /proc/sys/net shows. A kernel without IPv6 has no such file.
func silence(name string) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// openVhost opens vhost-net for each queue. A host that has none is no error.
func (d *Device) openVhost() error {
	for range d.Queues {
		f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
		if err != nil {
			d.NoVhost = err.Error()
			break
		}
		d.Vhost = append(d.Vhost, f)
	}
	if d.NoVhost != "" {
		for _, f := range d.Vhost {
			f.Close()
		}
		d.Vhost = nil
	}
	return nil
}

// Teardown removes every device and rule that this package made in the
// namespace. What is removed is no error. The descriptors of the devices must be
// closed, and the virtual machine have ended: its network is gone.
func (n *Namespace) Teardown() error {
	links, err := whole(n.route.LinkList)
	if err != nil {
		return fmt.Errorf("tear down the network of %s: %w", n.file.Name(), err)
	}
	var errs []error
	for _, l := range links {
		errs = append(errs, n.remove(l))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tear down the network of %s: %w", n.file.Name(), err)
	}
	return nil
}

// disconnect removes what this package made for one interface.
func (n *Namespace) disconnect(index int) error {
	links, err := whole(n.route.LinkList)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if l.Attrs().Index == index || isOurs(l) && l.Attrs().Name == ours+strconv.Itoa(index) {
			errs = append(errs, n.remove(l))
		}
	}
	return errors.Join(errs...)
}

// remove removes a device of ours, and from any other one our rule.
func (n *Namespace) remove(l netlink.Link) error {
	err := n.unredirect(l)
	if err == nil && isOurs(l) {
		err = n.route.LinkDel(l)
	}
	if isGone(err) {
		return nil // or going: a tap goes with its last descriptor
	}
	return err
}

// Cleanup removes what a sandbox that was killed left in the namespace at path.
// A namespace that is gone, or that another sandbox works in by now, is left
// alone.
func Cleanup(path string) error {
	n, err := Open(path)
	if errors.Is(err, ErrNoNamespace) || errors.Is(err, ErrInUse) || errors.Is(err, ErrHost) {
		return nil
	}
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Teardown()
}
