package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// UpdateRoutes replaces the routes of the main table, but for those that the
// kernel made for addresses or heard of from routers. It returns the routes that
// there are then.
func (n *Network) UpdateRoutes(want *pb.Routes) (*pb.Routes, error) {
	if len(want.GetRoutes()) > maxEntries {
		return nil, fmt.Errorf("%d routes, at most %d: %w", len(want.GetRoutes()), maxEntries, errdefs.ErrInvalidArgument)
	}
	h, err := n.open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var routes []netlink.Route
	for _, r := range want.GetRoutes() {
		route, err := parseRoute(h, r)
		if err != nil {
			return nil, err
		}
		routes = append(routes, route)
	}
	// A gateway is taken only if a route leads to it.
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return len(a.Gw) - len(b.Gw) })

	had, err := mainTable(h)
	if err != nil {
		return nil, err
	}
	for _, r := range had {
		if r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA {
			continue
		}
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) { // gone with one that it followed from
			return nil, fmt.Errorf("remove the route %s: %w", r, err)
		}
	}
	for _, r := range routes {
		if err := h.RouteAdd(&r); err != nil && !errors.Is(err, unix.EEXIST) { // the kernel made it for an address
			return nil, fmt.Errorf("add the route %s: %w", r, err)
		}
	}
	return listRoutes(h)
}

func parseRoute(h *netlink.Handle, r *pb.Route) (netlink.Route, error) {
	invalid := func(field, value string) (netlink.Route, error) {
		return netlink.Route{}, fmt.Errorf("route to %.50q: %s %.50q: %w", r.GetDest(), field, value, errdefs.ErrInvalidArgument)
	}
	v6 := r.GetFamily() == pb.IPFamily_v6
	out := netlink.Route{Scope: netlink.Scope(r.GetScope()), Flags: int(r.GetFlags()), MTU: int(r.GetMtu()), Protocol: unix.RTPROT_STATIC}
	to := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if v6 {
		to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if r.GetDest() != "" {
		var err error
		if to, err = netip.ParsePrefix(r.GetDest()); err != nil || to.Addr().Is6() != v6 {
			return invalid("destination", r.GetDest())
		}
	}
	out.Dst = ipNet(to.Masked())
	var ok bool
	if out.Gw, ok = parseIP(r.GetGateway(), v6); !ok {
		return invalid("gateway", r.GetGateway())
	}
	if out.Src, ok = parseIP(r.GetSource(), v6); !ok {
		return invalid("source", r.GetSource())
	}
	if flags := r.GetFlags(); flags&^unix.RTNH_F_ONLINK != 0 {
		return invalid("flags", fmt.Sprintf("%#x", flags))
	}
	if r.GetScope() > unix.RT_SCOPE_NOWHERE || r.GetMtu() > 1<<16 {
		return invalid("scope or MTU", fmt.Sprint(r.GetScope(), " ", r.GetMtu()))
	}
	if !validName(r.GetDevice()) {
		return invalid("device", r.GetDevice())
	}
	link, err := h.LinkByName(r.GetDevice())
	if notFound(err) {
		return netlink.Route{}, fmt.Errorf("route to %s: interface %s: %w", to, r.GetDevice(), errdefs.ErrNotFound)
	}
	if err != nil {
		return netlink.Route{}, fmt.Errorf("route to %s: %w", to, err)
	}
	out.LinkIndex = link.Attrs().Index
	return out, nil
}

// parseIP returns nil for the empty text.
func parseIP(text string, v6 bool) (ip net.IP, ok bool) {
	if text == "" {
		return nil, true
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Is6() != v6 || a.Zone() != "" || a.Is4In6() {
		return nil, false
	}
	return a.AsSlice(), true
}

// ListRoutes returns the routes of the main table to single interfaces.
func (n *Network) ListRoutes() (*pb.Routes, error) {
	h, err := n.open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return listRoutes(h)
}

func listRoutes(h *netlink.Handle) (*pb.Routes, error) {
	routes, err := mainTable(h)
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	out := &pb.Routes{}
	for _, r := range routes {
		name, ok := names[r.LinkIndex]
		if !ok {
			link, err := h.LinkByIndex(r.LinkIndex)
			if err != nil {
				continue // it went away, with the route
			}
			name = link.Attrs().Name
			names[r.LinkIndex] = name
		}
		out.Routes = append(out.Routes, &pb.Route{
			Dest: text(r.Dst), Gateway: textIP(r.Gw), Source: textIP(r.Src), Device: name,
			Scope: uint32(r.Scope), Family: protocolFamily(r.Family), Flags: uint32(r.Flags) & unix.RTNH_F_ONLINK, Mtu: uint32(r.MTU),
		})
	}
	return out, nil
}

func protocolFamily(family int) pb.IPFamily {
	if family == netlink.FAMILY_V6 {
		return pb.IPFamily_v6
	}
	return pb.IPFamily_v4
}

// text is the destination of a route, "" for a default route.
func text(n *net.IPNet) string {
	if n == nil {
		return ""
	}
	if ones, _ := n.Mask.Size(); ones == 0 {
		return ""
	}
	return n.String()
}

func textIP(ip net.IP) string {
	if ip == nil {
		return ""
	}
	return ip.String()
}

// mainTable lists the unicast routes of both families to single interfaces.
func mainTable(h *netlink.Handle) ([]netlink.Route, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := whole(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			if r.Type == unix.RTN_UNICAST && r.LinkIndex != 0 {
				r.Family = family
				all = append(all, r)
			}
		}
	}
	return all, nil
}

// AddARPNeighbors makes permanent entries for neighbours, of IPv4 and of IPv6.
func (n *Network) AddARPNeighbors(want *pb.ARPNeighbors) error {
	if len(want.GetARPNeighbors()) > maxEntries {
		return fmt.Errorf("%d neighbours, at most %d: %w", len(want.GetARPNeighbors()), maxEntries, errdefs.ErrInvalidArgument)
	}
	h, err := n.open()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, e := range want.GetARPNeighbors() {
		if err := addNeighbour(h, e); err != nil {
			return fmt.Errorf("neighbour %.50q: %w", e.GetToIPAddress().GetAddress(), err)
		}
	}
	return nil
}

func addNeighbour(h *netlink.Handle, e *pb.ARPNeighbor) error {
	ip, err := netip.ParseAddr(e.GetToIPAddress().GetAddress())
	if err != nil || ip.Zone() != "" || ip.Is4In6() {
		return fmt.Errorf("no address: %w", errdefs.ErrInvalidArgument)
	}
	mac, err := parseMAC(e.GetLladdr())
	if err != nil {
		return err
	}
	if state := e.GetState(); state != 0 && state != unix.NUD_PERMANENT {
		return fmt.Errorf("state %#x is not permanent: %w", state, errdefs.ErrInvalidArgument)
	}
	if e.GetFlags() != 0 {
		return fmt.Errorf("flags %#x: %w", e.GetFlags(), errdefs.ErrNotImplemented)
	}
	if !validName(e.GetDevice()) {
		return fmt.Errorf("interface %.20q: %w", e.GetDevice(), errdefs.ErrInvalidArgument)
	}
	link, err := h.LinkByName(e.GetDevice())
	if notFound(err) {
		return fmt.Errorf("interface %s: %w", e.GetDevice(), errdefs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	return h.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, IP: ip.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
	})
}
