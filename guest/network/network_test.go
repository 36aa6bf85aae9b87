package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/uevent"
	"github.com/erofsvm/erofsvm/test/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest is a network namespace in the place of a guest's.
type guest struct {
	*Network
	kernel *netlink.Handle
	loaded []string
}

// Load implements Modules: veth stands in for virtio_net, and is built in.
func (g *guest) Load(_ context.Context, stage string) error {
	g.loaded = append(g.loaded, stage)
	return nil
}

// thread runs f on a thread of its own that ends with it, and is not the main
// one, which never ends.
func thread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- thread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	need.Root(t, "to make a network namespace")
	var ns *os.File
	must(t, "unshare", thread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}))
	t.Cleanup(func() { ns.Close() })
	inside := func(f func() error) error {
		return thread(func() error {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		})
	}
	g := &guest{}
	g.Network = &Network{
		modules: g,
		handle: func() (h *netlink.Handle, err error) {
			err = inside(func() error { h, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
			return h, err
		},
		events: func() (e *uevent.Events, err error) {
			err = inside(func() error { e, err = uevent.Listen(); return err })
			return e, err
		},
	}
	var err error
	g.kernel, err = g.handle()
	must(t, "handle", err)
	t.Cleanup(g.kernel.Close)
	lo, err := g.kernel.LinkByName("lo")
	must(t, "lo", err)
	must(t, "lo up", g.kernel.LinkSetUp(lo))
	return g
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// plug makes an interface with a carrier.
func (g *guest) plug(t *testing.T, name, mac string) {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	must(t, mac, err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, hw
	must(t, "plug "+name, g.kernel.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer-" + name}))
	peer, err := g.kernel.LinkByName("peer-" + name)
	must(t, "peer", err)
	must(t, "peer up", g.kernel.LinkSetUp(peer))
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func addresses(all ...string) []*pb.IPAddress {
	var out []*pb.IPAddress
	for _, a := range all {
		ip, mask, _ := strings.Cut(a, "/")
		family := pb.IPFamily_v4
		if strings.Contains(ip, ":") {
			family = pb.IPFamily_v6
		}
		out = append(out, &pb.IPAddress{Family: family, Address: ip, Mask: mask})
	}
	return out
}

// show writes an interface as one line, without what its kernel made up.
func show(i *pb.Interface) string {
	var ips []string
	for _, a := range i.GetIPAddresses() {
		if !strings.HasPrefix(a.GetAddress(), "fe80:") {
			ips = append(ips, a.GetAddress()+"/"+a.GetMask())
		}
	}
	return fmt.Sprintf("%s %s mtu %d %s", i.GetName(), i.GetHwAddr(), i.GetMtu(), strings.Join(ips, " "))
}

const mac1, mac2 = "02:00:00:00:00:01", "02:00:00:00:00:02"

func TestInterfaceGetsNameMTUAndAddresses(t *testing.T) {
	g := newGuest(t)
	g.plug(t, "eth0", mac2) // the kernel's order is not the host's
	g.plug(t, "eth1", mac1)
	for _, c := range []struct {
		want *pb.Interface
		is   string
	}{
		{&pb.Interface{Name: "eth0", HwAddr: mac1, Mtu: 1450, IPAddresses: addresses("10.1.0.5/24", "fd00:1::5/64")},
			"eth0 " + mac1 + " mtu 1450 10.1.0.5/24 fd00:1::5/64"},
		{&pb.Interface{Name: "net1", HwAddr: mac2, Mtu: 9000, IPAddresses: addresses("192.168.7.2/32")},
			"net1 " + mac2 + " mtu 9000 192.168.7.2/32"},
		{&pb.Interface{Name: "eth0", HwAddr: mac1, IPAddresses: addresses("10.1.0.6/24", "fd00:1::5/64", "10.1.0.6/24")},
			"eth0 " + mac1 + " mtu 1450 10.1.0.6/24 fd00:1::5/64"},
		{&pb.Interface{Name: "eth0", HwAddr: mac1, RawFlags: unix.IFF_NOARP}, "eth0 " + mac1 + " mtu 1450 "},
	} {
		got, err := g.UpdateInterface(soon(t), c.want)
		must(t, c.is, err)
		if show(got) != c.is {
			t.Errorf("got  %s\nwant %s", show(got), c.is)
		}
		if got.GetRawFlags() != c.want.GetRawFlags() {
			t.Errorf("raw_flags %#x, want %#x", got.GetRawFlags(), c.want.GetRawFlags())
		}
		link, err := g.kernel.LinkByName(c.want.GetName())
		must(t, "find it", err)
		if link.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("%s is down", c.want.GetName())
		}
	}
	all, err := g.ListInterfaces()
	must(t, "list", err)
	var names []string
	for _, i := range all.GetInterfaces() {
		names = append(names, i.GetName())
	}
	for _, want := range []string{"lo", "eth0", "net1"} {
		if !strings.Contains(strings.Join(names, " "), want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
	if g.loaded[0] != layout.StageNetwork {
		t.Errorf("modules %v", g.loaded)
	}
}

// IPv6 asks whether an address is in use, and an address is tentative until then.
func TestAddressOfIPv6IsUsableAtOnce(t *testing.T) {
	g := newGuest(t)
	g.plug(t, "eth0", mac1)
	_, err := g.UpdateInterface(soon(t), &pb.Interface{Name: "eth0", HwAddr: mac1, IPAddresses: addresses("fd00:1::5/64")})
	must(t, "update", err)
	link, err := g.kernel.LinkByName("eth0")
	must(t, "find it", err)
	list, err := g.kernel.AddrList(link, netlink.FAMILY_V6)
	must(t, "addresses", err)
	for _, a := range list {
		if a.IP.String() == "fd00:1::5" && a.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("%s is tentative", a)
		}
	}
}

func TestInterfaceThatIsNotThereYetIsAwaited(t *testing.T) {
	g := newGuest(t)
	asked := g.events
	listening := make(chan struct{})
	g.events = func() (*uevent.Events, error) {
		defer close(listening)
		return asked()
	}
	done := make(chan error, 1)
	go func() {
		_, err := g.UpdateInterface(soon(t), &pb.Interface{Name: "eth0", HwAddr: mac1})
		done <- err
	}()
	<-listening
	g.plug(t, "late0", mac1)
	must(t, "update", <-done)
}

func TestInterfaceThatDoesNotComeIsSaid(t *testing.T) {
	g := newGuest(t)
	g.plug(t, "eth0", mac2)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := g.UpdateInterface(ctx, &pb.Interface{Name: "eth0", HwAddr: mac1})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), mac1) || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("%v", err)
	}
}

func TestNameOfAConfiguredInterfaceIsNotTaken(t *testing.T) {
	g := newGuest(t)
	g.plug(t, "eth0", mac1)
	g.plug(t, "eth1", mac2)
	_, err := g.UpdateInterface(soon(t), &pb.Interface{Name: "eth0", HwAddr: mac1})
	must(t, "first", err)
	if _, err = g.UpdateInterface(soon(t), &pb.Interface{Name: "eth0", HwAddr: mac2}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second: %v", err)
	}
}

func TestBadInterfaceIsRefusedAtOnce(t *testing.T) {
	n := &Network{} // which it must not get to
	good := func(change func(*pb.Interface)) *pb.Interface {
		i := &pb.Interface{Name: "eth0", HwAddr: mac1}
		change(i)
		return i
	}
	for what, i := range map[string]*pb.Interface{
		"nothing":        nil,
		"no name":        good(func(i *pb.Interface) { i.Name = "" }),
		"a path":         good(func(i *pb.Interface) { i.Name = "../eth0" }),
		"two dots":       good(func(i *pb.Interface) { i.Name = ".." }),
		"a blank":        good(func(i *pb.Interface) { i.Name = "eth 0" }),
		"a long name":    good(func(i *pb.Interface) { i.Name = "0123456789abcdef" }),
		"no MAC":         good(func(i *pb.Interface) { i.HwAddr = "" }),
		"a group's MAC":  good(func(i *pb.Interface) { i.HwAddr = "ff:ff:ff:ff:ff:ff" }),
		"an EUI-64":      good(func(i *pb.Interface) { i.HwAddr = "02:00:00:00:00:00:00:01" }),
		"a small MTU":    good(func(i *pb.Interface) { i.Mtu = 67 }),
		"a large MTU":    good(func(i *pb.Interface) { i.Mtu = 1 << 40 }),
		"no address":     good(func(i *pb.Interface) { i.IPAddresses = addresses("/24") }),
		"a long mask":    good(func(i *pb.Interface) { i.IPAddresses = addresses("10.0.0.1/33") }),
		"a signed mask":  good(func(i *pb.Interface) { i.IPAddresses = addresses("10.0.0.1/-1") }),
		"a zone":         good(func(i *pb.Interface) { i.IPAddresses = addresses("fe80::1%eth0/64") }),
		"both families":  good(func(i *pb.Interface) { i.IPAddresses = addresses("::ffff:10.0.0.1/96") }),
		"many addresses": good(func(i *pb.Interface) { i.IPAddresses = make([]*pb.IPAddress, maxEntries+1) }),
	} {
		if _, err := n.UpdateInterface(t.Context(), i); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := n.UpdateInterface(t.Context(), good(func(i *pb.Interface) { i.RawFlags = unix.IFF_PROMISC })); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("another flag: %v", err)
	}
}
