// Package network configures the guest's interfaces as the host asks for it:
// names, MTU, addresses, routes and neighbours.
//
// It keeps no state beside the kernel's and starts no goroutine. Calls may come
// from any goroutine, and those that change something one after another, as the
// protocol has them. An interface is known by its MAC: its name is what the
// kernel gave it in the order in which the interfaces were plugged. A wait for
// one ends with the context of the call.
package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/uevent"
)

const (
	// requestTimeout bounds one request to the kernel.
	requestTimeout = 10 * time.Second
	// maxEntries bounds the addresses of an interface, the routes and the
	// neighbours of one call.
	maxEntries = 4096
	// minMTU is the least that IPv4 can do with (ETH_MIN_MTU).
	minMTU = 68
)

// Modules loads the modules of a stage on demand of package layout, unless that
// is done already. It waits until ctx ends.
type Modules interface {
	Load(ctx context.Context, stage string) error
}

// Network is the network of the guest.
type Network struct {
	modules Modules
	// handle and events open sockets in the namespace that is configured.
	handle func() (*netlink.Handle, error)
	events func() (*uevent.Events, error)
}

// New returns the network of the calling thread's namespace, whose drivers
// modules loads.
func New(modules Modules) *Network {
	return &Network{
		modules: modules,
		handle:  func() (*netlink.Handle, error) { return netlink.NewHandle(unix.NETLINK_ROUTE) },
		events:  uevent.Listen,
	}
}

// open opens a socket for one call.
func (n *Network) open() (*netlink.Handle, error) {
	h, err := n.handle()
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(requestTimeout); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// UpdateInterface gives the interface with that MAC, which it waits for until
// ctx ends, its name, MTU and addresses, and sets it up. Addresses that it had
// and that are not among them go, but for the link-local one of IPv6, which is
// the kernel's. It returns the interface as it is then.
func (n *Network) UpdateInterface(ctx context.Context, want *pb.Interface) (*pb.Interface, error) {
	mac, addresses, err := parseInterface(want)
	if err != nil {
		return nil, err
	}
	if err := n.modules.Load(ctx, layout.StageNetwork); err != nil {
		return nil, err
	}
	h, err := n.open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := n.await(ctx, h, mac)
	if err != nil {
		return nil, err
	}
	if err := configure(h, link, want, addresses); err != nil {
		return nil, fmt.Errorf("interface %s (%s): %w", want.GetName(), mac, err)
	}
	if link, err = h.LinkByIndex(link.Attrs().Index); err != nil {
		return nil, fmt.Errorf("interface %s (%s): %w", want.GetName(), mac, err)
	}
	return describe(h, link)
}

func parseInterface(want *pb.Interface) (net.HardwareAddr, []netip.Prefix, error) {
	mac, err := parseMAC(want.GetHwAddr())
	if err != nil {
		return nil, nil, fmt.Errorf("interface %.20q: %w", want.GetName(), err)
	}
	if !validName(want.GetName()) {
		return nil, nil, fmt.Errorf("interface name %.20q: %w", want.GetName(), errdefs.ErrInvalidArgument)
	}
	if mtu := want.GetMtu(); mtu != 0 && (mtu < minMTU || mtu > 1<<16) {
		return nil, nil, fmt.Errorf("interface %s: MTU %d: %w", want.GetName(), mtu, errdefs.ErrInvalidArgument)
	}
	if flags := want.GetRawFlags(); flags&^unix.IFF_NOARP != 0 {
		return nil, nil, fmt.Errorf("interface %s: raw_flags %#x, and the agent knows IFF_NOARP alone: %w", want.GetName(), flags, errdefs.ErrNotImplemented)
	}
	if len(want.GetIPAddresses()) > maxEntries {
		return nil, nil, fmt.Errorf("interface %s: %d addresses: %w", want.GetName(), len(want.GetIPAddresses()), errdefs.ErrInvalidArgument)
	}
	var addresses []netip.Prefix
	for _, a := range want.GetIPAddresses() {
		ip, err := netip.ParseAddr(a.GetAddress())
		bits, bad := strconv.ParseUint(a.GetMask(), 10, 8)
		if err != nil || bad != nil || ip.Zone() != "" || int(bits) > ip.BitLen() || ip.Is4In6() {
			return nil, nil, fmt.Errorf("interface %s: address %.50q, mask %.10q: %w", want.GetName(), a.GetAddress(), a.GetMask(), errdefs.ErrInvalidArgument)
		}
		addresses = append(addresses, netip.PrefixFrom(ip, int(bits)))
	}
	return mac, addresses, nil
}

func parseMAC(text string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || bytes.Equal(mac, make([]byte, 6)) || mac[0]&1 != 0 {
		return nil, fmt.Errorf("MAC %.40q: %w", text, errdefs.ErrInvalidArgument)
	}
	return mac, nil
}

// validName is the kernel's dev_valid_name.
func validName(name string) bool {
	return name != "" && len(name) < unix.IFNAMSIZ && name != "." && name != ".." &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' || r == ':' })
}

// await returns the interface with a MAC once it is there.
func (n *Network) await(ctx context.Context, h *netlink.Handle, mac net.HardwareAddr) (netlink.Link, error) {
	events, err := n.events()
	if err != nil {
		return nil, fmt.Errorf("listen for interfaces: %w", err)
	}
	defer events.Close()
	for {
		links, err := whole(h.LinkList)
		if err != nil {
			return nil, fmt.Errorf("list the interfaces: %w", err)
		}
		var names []string
		for _, l := range links {
			if bytes.Equal(l.Attrs().HardwareAddr, mac) {
				return l, nil
			}
			names = append(names, l.Attrs().Name)
		}
		if err := nextInterface(ctx, events); err != nil {
			return nil, fmt.Errorf("wait for the interface with MAC %s to appear (there are %s): %w", mac, strings.Join(names, ", "), err)
		}
	}
}

// nextInterface returns after the next event that may mean a new interface; what
// it says is only a reason to look.
func nextInterface(ctx context.Context, events *uevent.Events) error {
	for {
		event, err := events.Next(ctx)
		if err != nil || event.Lost || event.Get("SUBSYSTEM") == "net" {
			return err
		}
	}
}

// configure makes the interface what the host wants. It is set down for that
// only if its name changes, since that takes the routes through it along.
func configure(h *netlink.Handle, link netlink.Link, want *pb.Interface, addresses []netip.Prefix) error {
	if link.Attrs().Name != want.GetName() {
		if err := freeName(h, want.GetName()); err != nil {
			return err
		}
		if err := h.LinkSetDown(link); err != nil {
			return fmt.Errorf("set it down: %w", err)
		}
		if err := h.LinkSetName(link, want.GetName()); err != nil {
			return fmt.Errorf("rename %s: %w", link.Attrs().Name, err)
		}
	}
	if mtu := int(want.GetMtu()); mtu != 0 && mtu != link.Attrs().MTU {
		if err := h.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("MTU %d: %w", mtu, err)
		}
	}
	if want.GetRawFlags()&unix.IFF_NOARP != 0 {
		if err := h.LinkSetARPOff(link); err != nil {
			return fmt.Errorf("set ARP off: %w", err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	return setAddresses(h, link, addresses)
}

// freeName takes a name from an interface that the kernel gave it to, and which
// nobody has configured yet.
func freeName(h *netlink.Handle, name string) error {
	other, err := h.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for another %s: %w", name, err)
	}
	if other.Attrs().Flags&net.FlagUp != 0 {
		return fmt.Errorf("another interface (%s) has that name: %w", other.Attrs().HardwareAddr, errdefs.ErrAlreadyExists)
	}
	if err := h.LinkSetName(other, "plugged"+strconv.Itoa(other.Attrs().Index)); err != nil {
		return fmt.Errorf("rename another %s: %w", name, err)
	}
	return nil
}

// setAddresses replaces the addresses of an interface. Whether an IPv6 address is
// in use already (IFA_F_NODAD) was found out on the host; the guest asking
// again, where a switch sends its own question back to it, would find itself.
func setAddresses(h *netlink.Handle, link netlink.Link, want []netip.Prefix) error {
	had, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list its addresses: %w", err)
	}
	missing := map[netip.Prefix]bool{}
	for _, p := range want {
		missing[p] = true
	}
	for _, a := range had {
		p, ok := prefix(a.IPNet)
		switch {
		case !ok, p.Addr().Is6() && p.Addr().IsLinkLocalUnicast():
		case missing[p]:
			delete(missing, p)
		default:
			if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("remove the address %s: %w", p, err)
			}
		}
	}
	for _, p := range want { // the first one is what the kernel takes as source
		if !missing[p] {
			continue
		}
		delete(missing, p)
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add the address %s: %w", p, err)
		}
	}
	return nil
}

// ListInterfaces returns all interfaces with their addresses, lo among them.
func (n *Network) ListInterfaces() (*pb.Interfaces, error) {
	h, err := n.open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := whole(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	out := &pb.Interfaces{}
	for _, l := range links {
		i, err := describe(h, l)
		if err != nil {
			return nil, err
		}
		out.Interfaces = append(out.Interfaces, i)
	}
	return out, nil
}

// describe says what an interface is.
func describe(h *netlink.Handle, link netlink.Link) (*pb.Interface, error) {
	a := link.Attrs()
	out := &pb.Interface{
		Device: a.Name, Name: a.Name, Mtu: uint64(a.MTU), HwAddr: a.HardwareAddr.String(),
		Type: link.Type(), RawFlags: a.RawFlags & unix.IFF_NOARP,
	}
	addresses, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", a.Name, err)
	}
	for _, a := range addresses {
		if p, ok := prefix(a.IPNet); ok {
			out.IPAddresses = append(out.IPAddresses, &pb.IPAddress{
				Family: family(p.Addr()), Address: p.Addr().String(), Mask: strconv.Itoa(p.Bits()),
			})
		}
	}
	return out, nil
}

func family(a netip.Addr) pb.IPFamily {
	if a.Is6() {
		return pb.IPFamily_v6
	}
	return pb.IPFamily_v4
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	ip = ip.Unmap()
	return netip.PrefixFrom(ip, ones), ok && bits == ip.BitLen()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// whole repeats a listing that the kernel says was changed while it was read.
func whole[T any](list func() (T, error)) (T, error) {
	const attempts = 5
	var found T
	var err error
	for range attempts {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return found, err
}
