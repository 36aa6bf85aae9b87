package network

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// configured is a guest with an interface.
func configured(t *testing.T) *guest {
	g := newGuest(t)
	g.plug(t, "eth0", mac1)
	_, err := g.UpdateInterface(soon(t), &pb.Interface{Name: "eth0", HwAddr: mac1, IPAddresses: addresses("10.1.0.5/24", "fd00:1::5/64")})
	must(t, "interface", err)
	return g
}

// shown are the routes of IPv4 and of networks that are not link-local.
func shown(routes *pb.Routes) []string {
	var out []string
	for _, r := range routes.GetRoutes() {
		if !strings.HasPrefix(r.GetDest(), "fe80:") {
			out = append(out, fmt.Sprintf("%s via %s from %s dev %s scope %d flags %d mtu %d", r.GetDest(), r.GetGateway(), r.GetSource(), r.GetDevice(), r.GetScope(), r.GetFlags(), r.GetMtu()))
		}
	}
	slices.Sort(out)
	return out
}

const (
	network4 = "10.1.0.0/24 via  from 10.1.0.5 dev eth0 scope 253 flags 0 mtu 0"
	network6 = "fd00:1::/64 via  from  dev eth0 scope 0 flags 0 mtu 0"
)

func TestRoutesReplaceThoseBefore(t *testing.T) {
	g := configured(t)
	got, err := g.UpdateRoutes(&pb.Routes{Routes: []*pb.Route{
		{Device: "eth0", Gateway: "169.254.1.1"}, // which the next one leads to
		{Device: "eth0", Dest: "169.254.1.1/32", Scope: 253, Mtu: 1400},
		{Device: "eth0", Dest: "::/0", Gateway: "fd00:1::1", Family: pb.IPFamily_v6},
		{Device: "eth0", Dest: "172.16.0.0/12", Gateway: "172.31.0.1", Source: "10.1.0.5", Flags: 4},
		{Device: "eth0", Dest: "10.1.0.0/24", Source: "10.1.0.5", Scope: 253}, // is there already
	}})
	must(t, "first", err)
	want := []string{
		" via 169.254.1.1 from  dev eth0 scope 0 flags 0 mtu 0",
		" via fd00:1::1 from  dev eth0 scope 0 flags 0 mtu 0",
		network4,
		"169.254.1.1/32 via  from  dev eth0 scope 253 flags 0 mtu 1400",
		"172.16.0.0/12 via 172.31.0.1 from 10.1.0.5 dev eth0 scope 0 flags 4 mtu 0",
		network6,
	}
	if !slices.Equal(shown(got), want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(shown(got), "\n"), strings.Join(want, "\n"))
	}
	_, err = g.UpdateRoutes(&pb.Routes{Routes: []*pb.Route{{Device: "eth0", Gateway: "10.1.0.1"}}})
	must(t, "second", err)
	got, err = g.ListRoutes()
	must(t, "list", err)
	if want := []string{" via 10.1.0.1 from  dev eth0 scope 0 flags 0 mtu 0", network4, network6}; !slices.Equal(shown(got), want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(shown(got), "\n"), strings.Join(want, "\n"))
	}
}

func TestBadRouteChangesNothing(t *testing.T) {
	g := configured(t)
	must := func(r *pb.Route, class error) {
		t.Helper()
		if _, err := g.UpdateRoutes(&pb.Routes{Routes: []*pb.Route{{Device: "eth0", Gateway: "10.1.0.9"}, r}}); !errors.Is(err, class) {
			t.Errorf("%v: %v", r, err)
		}
	}
	for _, r := range []*pb.Route{
		{Device: "eth0", Dest: "10.0.0.0"},
		{Device: "eth0", Dest: "fd00::/64"}, // with the family of IPv4
		{Device: "eth0", Dest: "10.0.0.0/8", Family: pb.IPFamily_v6},
		{Device: "eth0", Gateway: "gateway"},
		{Device: "eth0", Gateway: "fe80::1%eth0", Family: pb.IPFamily_v6},
		{Device: "eth0", Source: "10.0.0.1/8"},
		{Device: "eth0", Gateway: "10.1.0.1", Flags: 1 << 4},
		{Device: "eth0", Gateway: "10.1.0.1", Scope: 256},
		{Device: "eth 0", Gateway: "10.1.0.1"},
		{Gateway: "10.1.0.1"},
	} {
		must(r, errdefs.ErrInvalidArgument)
	}
	must(&pb.Route{Device: "eth7", Gateway: "10.1.0.1"}, errdefs.ErrNotFound)
	if _, err := g.UpdateRoutes(&pb.Routes{Routes: make([]*pb.Route, maxEntries+1)}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("too many: %v", err)
	}
	got, err := g.ListRoutes()
	if want := []string{network4, network6}; err != nil || !slices.Equal(shown(got), want) {
		t.Errorf("%v, %q", err, shown(got))
	}
}

func TestNeighboursArePermanent(t *testing.T) {
	g := configured(t)
	for range 2 { // the second finds them
		must(t, "add", g.AddARPNeighbors(&pb.ARPNeighbors{ARPNeighbors: []*pb.ARPNeighbor{
			{ToIPAddress: addresses("169.254.1.1/")[0], Device: "eth0", Lladdr: mac2, State: netlink.NUD_PERMANENT},
			{ToIPAddress: addresses("fd00:1::1/")[0], Device: "eth0", Lladdr: mac2},
		}}))
	}
	list, err := g.kernel.NeighList(0, netlink.FAMILY_ALL)
	must(t, "list", err)
	found := 0
	for _, n := range list {
		if n.State == netlink.NUD_PERMANENT && n.HardwareAddr.String() == mac2 {
			found++
		}
	}
	if found != 2 {
		t.Errorf("%d permanent entries: %v", found, list)
	}
}

func TestBadNeighbourIsRefused(t *testing.T) {
	g := configured(t)
	ip := addresses("10.1.0.1/")[0]
	for want, entries := range map[error][]*pb.ARPNeighbor{
		errdefs.ErrInvalidArgument: {
			{}, {ToIPAddress: ip, Device: "eth0"}, {ToIPAddress: ip, Device: "", Lladdr: mac2},
			{ToIPAddress: ip, Device: "eth0", Lladdr: mac2, State: netlink.NUD_REACHABLE},
			{ToIPAddress: addresses("fe80::1%eth0/")[0], Device: "eth0", Lladdr: mac2},
		},
		errdefs.ErrNotFound:       {{ToIPAddress: ip, Device: "eth7", Lladdr: mac2}},
		errdefs.ErrNotImplemented: {{ToIPAddress: ip, Device: "eth0", Lladdr: mac2, Flags: netlink.NTF_PROXY}},
	} {
		for _, e := range entries {
			if err := g.AddARPNeighbors(&pb.ARPNeighbors{ARPNeighbors: []*pb.ARPNeighbor{e}}); !errors.Is(err, want) {
				t.Errorf("%v: %v", e, err)
			}
		}
	}
	if err := g.AddARPNeighbors(&pb.ARPNeighbors{ARPNeighbors: make([]*pb.ARPNeighbor, maxEntries+1)}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("too many: %v", err)
	}
}
