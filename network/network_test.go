package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestWhatCNIPutThereIsFound(t *testing.T) {
	p := newPod(t)
	p.plug(t, "eth0", mac(1), 1450, "10.1.0.5/24", "10.1.0.6/24", "fd00:1::5/64")
	p.plug(t, "net1", mac(2), 9000, "192.168.7.2/30")
	must(t, "veth", p.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "down0"}, PeerName: "down1"}))
	p.addRoute(t, "eth0", netlink.Route{Gw: net.ParseIP("10.1.0.1")})
	p.addRoute(t, "eth0", netlink.Route{Gw: net.ParseIP("fd00:1::1")})
	p.addRoute(t, "eth0", netlink.Route{Dst: cidr(t, "169.254.1.1/32"), Scope: netlink.SCOPE_LINK, MTU: 1400})
	p.addRoute(t, "net1", netlink.Route{Dst: cidr(t, "172.16.0.0/12"), Gw: net.ParseIP("172.31.0.1"), Src: net.ParseIP("192.168.7.2"), Flags: int(netlink.FLAG_ONLINK)})
	must(t, "neighbour", p.NeighSet(&netlink.Neigh{
		LinkIndex: p.link(t, "eth0").Attrs().Index, IP: net.ParseIP("169.254.1.1"), HardwareAddr: mac(9), State: netlink.NUD_PERMANENT,
	}))
	got, err := p.open(t).Scan()
	must(t, "scan", err)

	want := []Interface{
		{Name: "eth0", Index: p.link(t, "eth0").Attrs().Index, MAC: mac(1), MTU: 1450, Addresses: prefixes("10.1.0.5/24", "10.1.0.6/24", "fd00:1::5/64")},
		{Name: "net1", Index: p.link(t, "net1").Attrs().Index, MAC: mac(2), MTU: 9000, Addresses: prefixes("192.168.7.2/30")},
	}
	if !reflect.DeepEqual(got.Interfaces, want) {
		t.Errorf("interfaces:\n got %+v\nwant %+v", got.Interfaces, want)
	}
	var routes []string
	for _, r := range got.Routes {
		routes = append(routes, fmt.Sprintf("%s via %s from %s dev %s scope %d onlink %v mtu %d", r.Destination, r.Gateway, r.Source, r.Device, r.Scope, r.OnLink, r.MTU))
	}
	same(t, "routes", routes, []string{
		"0.0.0.0/0 via 10.1.0.1 from invalid IP dev eth0 scope 0 onlink false mtu 0",
		"169.254.1.1/32 via invalid IP from invalid IP dev eth0 scope 253 onlink false mtu 1400",
		"172.16.0.0/12 via 172.31.0.1 from 192.168.7.2 dev net1 scope 0 onlink true mtu 0",
		"::/0 via fd00:1::1 from invalid IP dev eth0 scope 0 onlink false mtu 0",
	})
	if want := []Neighbour{{netip.MustParseAddr("169.254.1.1"), mac(9), "eth0"}}; !reflect.DeepEqual(got.Neighbours, want) {
		t.Errorf("neighbours: %+v", got.Neighbours)
	}
	same(t, "skipped", got.Skipped, []string{"interface down1: it is down", "interface down0: it is down"})
}

func prefixes(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

// The ptp plugin removes the route that comes with the address and leads all
// traffic to the host.
func TestAddressWithoutItsNetworkIsASingleOne(t *testing.T) {
	p := newPod(t)
	p.plug(t, "eth0", mac(1), 1500, "10.1.0.5/24", "fd00:1::5/64")
	for network, scope := range map[string]netlink.Scope{"10.1.0.0/24": netlink.SCOPE_LINK, "fd00:1::/64": netlink.SCOPE_UNIVERSE} {
		must(t, "delete", p.RouteDel(&netlink.Route{LinkIndex: p.link(t, "eth0").Attrs().Index, Dst: cidr(t, network), Scope: scope}))
	}
	p.addRoute(t, "eth0", netlink.Route{Dst: cidr(t, "10.1.0.1/32"), Scope: netlink.SCOPE_LINK})
	p.addRoute(t, "eth0", netlink.Route{Dst: cidr(t, "10.1.0.0/24"), Gw: net.ParseIP("10.1.0.1")})
	got, err := p.open(t).Scan()
	must(t, "scan", err)
	if want := prefixes("10.1.0.5/32", "fd00:1::5/128"); !reflect.DeepEqual(got.Interfaces[0].Addresses, want) {
		t.Errorf("addresses %v, want %v", got.Interfaces[0].Addresses, want)
	}
	if len(got.Routes) != 2 {
		t.Errorf("routes %+v, want two", got.Routes)
	}
}

func TestAddressWithAPeerKeepsItsRoute(t *testing.T) {
	p := newPod(t)
	link := p.plug(t, "eth0", mac(1), 1500)
	must(t, "address", p.AddrAdd(link, &netlink.Addr{IPNet: cidr(t, "10.1.0.5/32"), Peer: cidr(t, "10.9.0.1/32")}))
	got, err := p.open(t).Scan()
	must(t, "scan", err)
	if want := prefixes("10.1.0.5/32"); !reflect.DeepEqual(got.Interfaces[0].Addresses, want) {
		t.Errorf("addresses %v, want %v", got.Interfaces[0].Addresses, want)
	}
	if len(got.Routes) != 1 || got.Routes[0].Destination != netip.MustParsePrefix("10.9.0.1/32") {
		t.Errorf("routes %+v, want the one to the peer", got.Routes)
	}
}

func TestWhatTheGuestCannotHaveIsSaid(t *testing.T) {
	p := newPod(t)
	p.plug(t, "eth0", mac(1), 1500, "10.1.0.5/24")
	p.addRoute(t, "eth0", netlink.Route{Dst: cidr(t, "10.2.0.0/16"), MultiPath: []*netlink.NexthopInfo{
		{LinkIndex: p.link(t, "eth0").Attrs().Index, Gw: net.ParseIP("10.1.0.1")},
		{LinkIndex: p.link(t, "eth0").Attrs().Index, Gw: net.ParseIP("10.1.0.2")},
	}})
	must(t, "blackhole", p.RouteAdd(&netlink.Route{Dst: cidr(t, "10.3.0.0/16"), Type: unix.RTN_BLACKHOLE}))
	rule := netlink.NewRule()
	rule.Table, rule.Src = 100, cidr(t, "10.1.0.5/32")
	must(t, "rule", p.RuleAdd(rule))
	got, err := p.open(t).Scan()
	must(t, "scan", err)
	text := strings.Join(got.Skipped, "\n")
	for _, want := range []string{"10.2.0.0/16", "10.3.0.0/16", "table 100"} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing is said of %s:\n%s", want, text)
		}
	}
	if len(got.Routes) != 0 {
		t.Errorf("routes %+v, want none", got.Routes)
	}
}

func TestFramesPassBothWays(t *testing.T) {
	for _, model := range []Model{Tap, MacVTap} {
		for _, c := range []struct{ mtu, queues int }{{1450, 1}, {9000, 1}, {1500, 4}} {
			t.Run(fmt.Sprintf("%s, MTU %d, %d queues", model, c.mtu, c.queues), func(t *testing.T) {
				p := newPod(t)
				p.plug(t, "eth0", mac(1), c.mtu, "10.1.0.5/24", "fd00:1::5/64")
				p.plug(t, "net1", mac(2), c.mtu)
				n := p.open(t)
				found, err := n.Scan()
				must(t, "scan", err)
				for _, i := range found.Interfaces {
					d, err := n.Connect(i, Options{Model: model, Queues: c.queues})
					must(t, "connect", err)
					defer d.Close()
					if len(d.Queues) != c.queues {
						t.Fatalf("%d descriptors, want %d", len(d.Queues), c.queues)
					}
					outside := p.outside.wire(t, "out-"+i.Name)
					in := frame(i.MAC, mac(77), c.mtu)
					outside.send(t, in)
					expectTap(t, d.Queues, in)
					all := frame(net.HardwareAddr{255, 255, 255, 255, 255, 255}, mac(77), 46)
					outside.send(t, all)
					expectTap(t, d.Queues, all)
					out := frame(mac(77), i.MAC, c.mtu)
					sendTap(t, d.Queues[c.queues-1], out)
					outside.expect(t, out)
				}
			})
		}
	}
}

// With the interface's own addresses still in the namespace, its kernel would
// answer beside the guest if it heard anything.
func TestTheNamespaceItselfDoesNotAnswer(t *testing.T) {
	p := newPod(t)
	p.plug(t, "eth0", mac(1), 1500, "10.1.0.5/24")
	who := frame(net.HardwareAddr{255, 255, 255, 255, 255, 255}, mac(77), 46)
	copy(who[12:], []byte{
		0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, // a request by ARP
		2, 0, 0, 0, 0, 77, 10, 1, 0, 9, 0, 0, 0, 0, 0, 0, 10, 1, 0, 5,
	})
	isAnswer := func(f []byte) bool { return len(f) > 21 && f[12] == 0x08 && f[13] == 0x06 && f[21] == 2 }
	outside := p.outside.wire(t, "out-eth0")
	mark := frame(mac(77), mac(78), 100)

	outside.send(t, who)
	p.wire(t, "eth0").send(t, mark)
	if !slices.ContainsFunc(outside.expect(t, mark), isAnswer) {
		t.Fatal("it does not answer without a guest either: the test shows nothing")
	}
	n := p.open(t)
	found, err := n.Scan()
	must(t, "scan", err)
	d, err := n.Connect(found.Interfaces[0], Options{Model: Tap, Queues: 1})
	must(t, "connect", err)
	defer d.Close()
	outside.send(t, who)
	expectTap(t, d.Queues, who)
	sendTap(t, d.Queues[0], mark)
	if slices.ContainsFunc(outside.expect(t, mark), isAnswer) {
		t.Error("the namespace has answered in the guest's place")
	}
}

func TestTeardownLeavesWhatIsNotOurs(t *testing.T) {
	for _, model := range []Model{Tap, MacVTap} {
		t.Run(string(model), func(t *testing.T) {
			p := newPod(t)
			link := p.plug(t, "eth0", mac(1), 1500, "10.1.0.5/24")
			other := p.plug(t, "net1", mac(2), 1500)
			must(t, "their qdisc", p.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: other.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			}}))
			must(t, "their filter", p.FilterAdd(&netlink.U32{FilterAttrs: netlink.FilterAttrs{
				LinkIndex: other.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 7, Protocol: unix.ETH_P_ARP,
			}, Actions: []netlink.Action{netlink.NewMirredAction(link.Attrs().Index)}}))
			n := p.open(t)
			found, err := n.Scan()
			must(t, "scan", err)
			for _, i := range found.Interfaces {
				d, err := n.Connect(i, Options{Model: model, Queues: 1})
				must(t, "connect", err)
				d.Close()
			}
			for range 2 { // the second finds nothing
				must(t, "teardown", n.Teardown())
				if got := p.names(t); got != "eth0 net1" {
					t.Errorf("interfaces %q", got)
				}
				if q, err := n.incoming(link); q != nil || err != nil {
					t.Errorf("eth0 keeps a qdisc: %v, %v", q, err)
				}
				filters, err := p.FilterList(other, netlink.HANDLE_MIN_INGRESS)
				must(t, "list", err)
				for _, f := range filters {
					if f.Attrs().Priority != 7 {
						t.Errorf("a filter of ours is left: %+v", f)
					}
				}
				if len(filters) == 0 {
					t.Error("their filter is gone")
				}
			}
		})
	}
}

// A plugin may have made the older kind of hook there.
func TestFramesPassWhereThereIsAnIngressQdisc(t *testing.T) {
	p := newPod(t)
	link := p.plug(t, "eth0", mac(1), 1500)
	must(t, "ingress", p.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}))
	n := p.open(t)
	found, err := n.Scan()
	must(t, "scan", err)
	d, err := n.Connect(found.Interfaces[0], Options{Model: Tap, Queues: 1})
	must(t, "connect", err)
	defer d.Close()
	in := frame(mac(1), mac(77), 100)
	p.outside.wire(t, "out-eth0").send(t, in)
	expectTap(t, d.Queues, in)
	d.Close()
	must(t, "teardown", n.Teardown())
	filters, err := p.FilterList(link, netlink.MakeHandle(0xffff, 0))
	if len(filters) > 0 {
		t.Errorf("filters are left: %v, %v", filters, err)
	}
}

// A shim that is killed closes its descriptors, and so does its QEMU.
func TestWhatAKilledSandboxLeftIsReplaced(t *testing.T) {
	for _, model := range []Model{Tap, MacVTap} {
		t.Run(string(model), func(t *testing.T) {
			p := newPod(t)
			p.plug(t, "eth0", mac(1), 1500, "10.1.0.5/24")
			for range 3 {
				n := p.open(t)
				found, err := n.Scan()
				must(t, "scan", err)
				if len(found.Interfaces) != 1 {
					t.Fatalf("interfaces %+v", found.Interfaces)
				}
				d, err := n.Connect(found.Interfaces[0], Options{Model: model, Queues: 1})
				must(t, "connect", err)
				in := frame(mac(1), mac(77), 100)
				p.outside.wire(t, "out-eth0").send(t, in)
				expectTap(t, d.Queues, in)
				d.Close()
				n.Close()
				if got := p.names(t); model == Tap && got != "eth0" {
					t.Errorf("a tap without a process is left: %q", got)
				}
			}
			must(t, "cleanup", Cleanup(p.path()))
			if got := p.names(t); got != "eth0" {
				t.Errorf("interfaces %q", got)
			}
			must(t, "cleanup again", Cleanup(p.path()))
		})
	}
}

func TestNamespaceHasOneSandboxAtATime(t *testing.T) {
	p := newPod(t)
	first := p.open(t)
	if _, err := Open(p.path()); !errors.Is(err, ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
	must(t, "cleanup beside it", Cleanup(p.path()))
	first.Close()
	first.Close()
	second, err := Open(p.path())
	must(t, "after it", err)
	second.Close()
}

func TestPathThatIsNoNamespaceIsRefused(t *testing.T) {
	newSpace(t) // needs root
	for name, path := range notANamespace(t) {
		if _, err := Open(path); !errors.Is(err, ErrNoNamespace) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, "cleanup of "+name, Cleanup(path))
	}
}

func TestNamespaceOfTheHostIsRefused(t *testing.T) {
	newSpace(t) // needs root
	if _, err := Open("/proc/self/ns/net"); !errors.Is(err, ErrHost) {
		t.Errorf("%v", err)
	}
	must(t, "cleanup", Cleanup("/proc/self/ns/net"))
}

// The runtime never ends the main thread, so nothing may be left in a namespace
// by it.
func TestTheProcessStaysWhereItIs(t *testing.T) {
	p := newPod(t)
	before, err := os.Readlink("/proc/self/ns/net")
	must(t, "readlink", err)
	for range 50 {
		n, err := Open(p.path())
		must(t, "open", err)
		n.Close()
	}
	if after, err := os.Readlink("/proc/self/ns/net"); after != before || err != nil {
		t.Errorf("%s became %s, %v", before, after, err)
	}
}

func TestNewNamespaceIsEmptyAndIsNotTheHosts(t *testing.T) {
	newSpace(t) // needs root
	n, err := New()
	must(t, "new", err)
	defer n.Close()
	found, err := n.Scan()
	must(t, "scan", err)
	if len(found.Interfaces)+len(found.Routes)+len(found.Neighbours) != 0 {
		t.Errorf("%+v", found)
	}
	if err := check(int(n.File().Fd())); err != nil {
		t.Error(err)
	}
}

func TestConnectThatFailsLeavesNothing(t *testing.T) {
	p := newPod(t)
	p.plug(t, "eth0", mac(1), 1500)
	n := p.open(t)
	found, err := n.Scan()
	must(t, "scan", err)
	bad := found.Interfaces[0]
	bad.MTU = 1 << 20
	for _, c := range []struct {
		i Interface
		o Options
	}{
		{found.Interfaces[0], Options{Model: "bridge", Queues: 1}},
		{found.Interfaces[0], Options{Model: Tap}},
		{bad, Options{Model: Tap, Queues: 1}},
		{bad, Options{Model: MacVTap, Queues: 1}},
	} {
		if _, err := n.Connect(c.i, c.o); err == nil || !strings.Contains(err.Error(), "eth0") {
			t.Errorf("%+v: %v", c.o, err)
		}
		if got := p.names(t); got != "eth0" {
			t.Errorf("%+v: left behind: %q", c.o, got)
		}
	}
}

func TestHostWithoutVhostNetIsServedByQEMU(t *testing.T) {
	p := newPod(t)
	p.plug(t, "eth0", mac(1), 1500)
	n := p.open(t)
	found, err := n.Scan()
	must(t, "scan", err)
	d, err := n.Connect(found.Interfaces[0], Options{Model: Tap, Queues: 2, Vhost: true})
	must(t, "connect", err)
	defer d.Close()
	if (len(d.Vhost) == 2) == (d.NoVhost != "") || len(d.Vhost) == 1 {
		t.Errorf("%d descriptors of vhost-net, reason %q", len(d.Vhost), d.NoVhost)
	}
}
