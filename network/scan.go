package network

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Network is what the guest is to have, and what of the namespace it cannot have.
type Network struct {
	Interfaces []Interface
	Routes     []Route
	Neighbours []Neighbour
	// Skipped says what of the namespace is left out and why, for the log.
	Skipped []string
}

// Interface is an Ethernet interface of the namespace.
type Interface struct {
	Name      string
	Index     int // in the namespace
	MAC       net.HardwareAddr
	MTU       int
	NoARP     bool // it resolves no addresses
	Addresses []netip.Prefix
}

// Route is an entry of the main routing table.
type Route struct {
	Destination netip.Prefix // of length 0 for a default route
	Gateway     netip.Addr   // invalid if there is none
	Source      netip.Addr   // invalid if the kernel may choose
	Device      string
	Scope       uint8 // RT_SCOPE_… of rtnetlink(7)
	OnLink      bool  // the gateway is there although no route leads to it
	MTU         int   // 0 for that of the interface
}

// Neighbour is a permanent entry of the ARP or NDP table.
type Neighbour struct {
	Address netip.Addr
	MAC     net.HardwareAddr
	Device  string
}

// Scan reads what CNI put into the namespace.
//
// An address that the kernel has made a route to its network for keeps its
// length, and that route is left out, since the guest's kernel makes it too. One
// whose network has no such route, because a plugin removed it (ptp does), comes
// as a single address, or the guest would look for its neighbours where there
// are none.
func (n *Namespace) Scan() (*Network, error) {
	s := scan{Namespace: n, links: map[int]*Interface{}}
	if err := s.interfaces(); err != nil {
		return nil, fmt.Errorf("read the interfaces of %s: %w", n.file.Name(), err)
	}
	routes, err := s.routes()
	if err != nil {
		return nil, fmt.Errorf("read the routes of %s: %w", n.file.Name(), err)
	}
	if err := s.addresses(routes); err != nil {
		return nil, fmt.Errorf("read the addresses of %s: %w", n.file.Name(), err)
	}
	if err := s.neighbours(); err != nil {
		return nil, fmt.Errorf("read the neighbours of %s: %w", n.file.Name(), err)
	}
	if err := s.rules(); err != nil {
		return nil, fmt.Errorf("read the routing rules of %s: %w", n.file.Name(), err)
	}
	for _, i := range s.order {
		s.found.Interfaces = append(s.found.Interfaces, *s.links[i])
	}
	return &s.found, nil
}

type scan struct {
	*Namespace
	found Network
	links map[int]*Interface // by index
	order []int
}

func (s *scan) skip(format string, args ...any) {
	s.found.Skipped = append(s.found.Skipped, fmt.Sprintf(format, args...))
}

func (s *scan) interfaces() error {
	links, err := whole(s.route.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		a := l.Attrs()
		switch {
		case a.Flags&net.FlagLoopback != 0, isOurs(l):
		case a.MasterIndex != 0:
			s.skip("interface %s: it is a port of another one", a.Name)
		case a.Flags&net.FlagUp == 0:
			// Among them are those that every namespace is born with, such as tunl0.
			if a.EncapType == "ether" {
				s.skip("interface %s: it is down", a.Name)
			}
		case a.EncapType != "ether" || len(a.HardwareAddr) != 6:
			s.skip("interface %s: it is of type %s and not an Ethernet", a.Name, a.EncapType)
		default:
			s.links[a.Index] = &Interface{Name: a.Name, Index: a.Index, MAC: bytes.Clone(a.HardwareAddr), MTU: a.MTU, NoARP: a.RawFlags&unix.IFF_NOARP != 0}
			s.order = append(s.order, a.Index)
		}
	}
	slices.Sort(s.order) // eth0 is made before net1
	return nil
}

// entry is a route with what only the scan has to know.
type entry struct {
	Route
	kernel bool // the kernel made it, for an address
}

// routes reads the routes to the interfaces that the guest will have.
func (s *scan) routes() ([]entry, error) {
	var found []entry
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := whole(func() ([]netlink.Route, error) {
			return s.route.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			if e, ok := s.entry(r, family); ok {
				found = append(found, e)
			}
		}
	}
	return found, nil
}

// entry translates a route, and says no to one that the guest is not to have.
func (s *scan) entry(r netlink.Route, family int) (entry, bool) {
	link := s.links[r.LinkIndex]
	destination, ok := prefix(r.Dst)
	if r.Dst == nil || !ok {
		destination = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if family == netlink.FAMILY_V6 {
			destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	switch {
	case r.Protocol == unix.RTPROT_RA:
		return entry{}, false // the guest hears the same router
	case r.Type != unix.RTN_UNICAST:
		s.skip("route to %s: the protocol of the agent has none of type %d", destination, r.Type)
		return entry{}, false
	case len(r.MultiPath) > 0 || r.Via != nil || r.Encap != nil || r.MPLSDst != nil:
		s.skip("route to %s: the protocol of the agent has only those with one gateway of the same family", destination)
		return entry{}, false
	case link == nil: // loopback, or an interface that is skipped
		return entry{}, false
	case destination.Addr().IsLinkLocalUnicast() && family == netlink.FAMILY_V6 && r.Protocol == unix.RTPROT_KERNEL:
		return entry{}, false // the guest's kernel makes its own
	}
	out := Route{
		Destination: destination, Device: link.Name, Scope: uint8(r.Scope),
		OnLink: r.Flags&unix.RTNH_F_ONLINK != 0, MTU: r.MTU,
	}
	out.Gateway, _ = address(r.Gw)
	out.Source, _ = address(r.Src)
	return entry{Route: out, kernel: r.Protocol == unix.RTPROT_KERNEL}, true
}

// addresses reads the addresses, and leaves of the routes those that they do not
// bring.
func (s *scan) addresses(routes []entry) error {
	left := slices.Clone(routes)
	for _, i := range s.order {
		link := s.links[i]
		list, err := whole(func() ([]netlink.Addr, error) {
			return s.route.AddrList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: i, Name: link.Name}}, netlink.FAMILY_ALL)
		})
		if err != nil {
			return err
		}
		for _, a := range list {
			p, ok := prefix(a.IPNet)
			if !ok {
				continue
			}
			if p.Addr().Is6() && (p.Addr().IsLinkLocalUnicast() || a.Flags&unix.IFA_F_PERMANENT == 0) {
				continue // the guest makes its own, from its MAC and what routers say
			}
			brings := func(r entry) bool {
				return r.kernel && r.Device == link.Name && r.Destination == p.Masked() && !r.Gateway.IsValid()
			}
			if !slices.ContainsFunc(routes, brings) { // a second address there has it, too
				p = netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
			}
			left = slices.DeleteFunc(left, brings)
			link.Addresses = append(link.Addresses, p)
		}
	}
	for _, r := range left {
		s.found.Routes = append(s.found.Routes, r.Route)
	}
	return nil
}

func (s *scan) neighbours() error {
	list, err := whole(func() ([]netlink.Neigh, error) { return s.route.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	for _, e := range list {
		link, ip := s.links[e.LinkIndex], netip.Addr{}
		if link == nil || e.State&unix.NUD_PERMANENT == 0 || len(e.HardwareAddr) != 6 {
			continue
		}
		ip, ok := address(e.IP)
		if !ok || ip.IsMulticast() {
			continue
		}
		s.found.Neighbours = append(s.found.Neighbours, Neighbour{Address: ip, MAC: e.HardwareAddr, Device: link.Name})
	}
	return nil
}

// rules says that there are routing rules beside the kernel's own ones, for
// which the agent's protocol has no message.
func (s *scan) rules() error {
	var more []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := whole(func() ([]netlink.Rule, error) { return s.route.RuleList(family) })
		if err != nil {
			return err
		}
		for _, r := range list {
			switch r.Table {
			case unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT, 0:
			default:
				more = append(more, fmt.Sprintf("table %d", r.Table))
			}
		}
	}
	if len(more) > 0 {
		s.skip("routing rules (%s): the protocol of the agent has only the main table", strings.Join(more, ", "))
	}
	return nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := address(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits != ip.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(ip, ones), true
}

func address(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}
