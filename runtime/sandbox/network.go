package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/network"
)

const (
	// maxInterfaces is how many interfaces a pod can have. Their places are
	// reserved when the VM boots.
	maxInterfaces = 8
	// maxAutoQueues bounds the queues that nobody asked for: each takes
	// interrupts of the guest.
	maxAutoQueues = 8
	// modelNone is the value of network.model that leaves the guest alone.
	modelNone = "none"
)

// netns is the network namespace of a sandbox. The zero value is a new one, into
// which CNI may put something before the first container starts (ctr run --cni).
type netns struct {
	path string
	host bool // the host's: the VM has loopback alone
}

// netnsOf is what a spec says. One that names no network namespace means the
// host's.
func netnsOf(spec *specs.Spec) netns {
	if spec.Linux != nil {
		for _, ns := range spec.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				return netns{path: ns.Path}
			}
		}
	}
	return netns{host: true}
}

// errHostNetwork is for people who read the event of a pod.
var errHostNetwork = fmt.Errorf("the pod is to have the host's network (hostNetwork: true, or no network namespace in linux.namespaces), which a virtual machine cannot have: "+
	"give it one of its own, or another runtime; with network.host = %q in the configuration it would get its loopback alone: %w", configs.HostNetworkLoopback, errdefs.ErrNotImplemented)

// podNetwork is the network of a sandbox: what a namespace of the host has is in
// the guest. The namespace is set by open and gone after close; what follows it
// is changed by one goroutine at a time, who holds the turn.
type podNetwork struct {
	cfg     configs.Network
	vcpus   int
	log     *log.Entry
	ns      *network.Namespace // nil: loopback alone
	changes *network.Changes   // since before the first look
	plugged chan error         // has one value when plug is done

	turn  chan struct{}
	told  network.Network // what the guest was told
	nics  map[int]nic     // by index in the namespace
	noted map[string]bool // what the log has
}

// nic is an interface that the VM has.
type nic struct {
	mac  net.HardwareAddr
	path string // where the guest finds it, by PCI
}

func newPodNetwork(c configs.Config, logger *log.Entry) *podNetwork {
	return &podNetwork{
		cfg: c.Network, vcpus: c.Hypervisor.VCPUs, log: logger, plugged: make(chan error, 1),
		turn: make(chan struct{}, 1), nics: map[int]nic{}, noted: map[string]bool{},
	}
}

// open takes the namespace, or makes it, before anything runs in it. It may be a pod's,
// which others send traffic to, or that of a container for itself.
func (n *podNetwork) open(at netns, pod bool) (err error) {
	switch {
	case at.host && pod && n.cfg.Host == configs.HostNetworkRefuse:
		return errHostNetwork
	case at.host:
		n.log.Warn("the spec has no network namespace, which means the host's: the guest cannot have that, and gets its loopback alone")
		return nil
	case at.path == "":
		n.ns, err = network.New()
	default:
		n.ns, err = network.Open(at.path)
	}
	switch {
	case errors.Is(err, network.ErrHost):
		return fmt.Errorf("linux.namespaces: %w: %w", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, network.ErrNoNamespace):
		return fmt.Errorf("linux.namespaces: %w: %w", err, errdefs.ErrNotFound)
	case errors.Is(err, network.ErrInUse):
		return fmt.Errorf("linux.namespaces: %w: %w", err, errdefs.ErrFailedPrecondition)
	case err != nil:
		return fmt.Errorf("linux.namespaces: %w", err)
	}
	if n.follows() {
		n.changes, err = n.ns.Watch()
	}
	return err
}

// follows says whether the guest gets what the namespace has.
func (n *podNetwork) follows() bool { return n.ns != nil && n.cfg.Model != modelNone }

// file is the namespace that QEMU runs in, nil for that of the shim.
func (n *podNetwork) file() *os.File {
	if n.ns == nil {
		return nil
	}
	return n.ns.File()
}

// slots is how many interfaces the VM must have room for.
func (n *podNetwork) slots() int {
	if n.ns == nil {
		return 0
	}
	return nicSlots(n.cfg)
}

// nicSlots is that of a pod with a network namespace of its own.
func nicSlots(c configs.Network) int {
	if c.Model == modelNone {
		return 0
	}
	return maxInterfaces
}

// plug gives the VM the interfaces that there are, while its guest boots. tell
// waits for it.
func (n *podNetwork) plug(ctx context.Context, m *machine) {
	begun := time.Now()
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	n.plugged <- n.attach(ctx, m, n.scan)
	m.trace.phase("network", begun)
}

// unplugged says that the VM with the interfaces has ended, and another one is to get
// them. What is left of the old ones in the namespace goes when they are made anew.
func (n *podNetwork) unplugged() {
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	select {
	case <-n.plugged:
	default:
	}
	clear(n.nics)
}

// scan reads the namespace, and logs once what of it is left out.
func (n *podNetwork) scan() (*network.Network, error) {
	found, err := n.ns.Scan()
	if err != nil {
		return nil, err
	}
	for _, skipped := range found.Skipped {
		if !n.noted[skipped] {
			n.noted[skipped] = true
			n.log.Warnf("not for the guest: %s", skipped)
		}
	}
	return found, nil
}

// attach gives the VM the interfaces that it does not have yet.
func (n *podNetwork) attach(ctx context.Context, m *machine, scan func() (*network.Network, error)) error {
	if !n.follows() {
		return nil
	}
	found, err := scan()
	if err != nil {
		return err
	}
	for _, i := range found.Interfaces {
		had, ok := n.nics[i.Index]
		switch {
		case !ok:
			at, err := n.attachOne(ctx, m, i)
			if err != nil {
				return err
			}
			n.nics[i.Index] = nic{mac: i.MAC, path: at.PCIPath}
		case !bytes.Equal(had.mac, i.MAC):
			return fmt.Errorf("interface %s: its MAC was %s and is %s now, which a running guest cannot follow: %w", i.Name, had.mac, i.MAC, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

func (n *podNetwork) attachOne(ctx context.Context, m *machine, i network.Interface) (hypervisor.Attachment, error) {
	device, err := n.ns.Connect(i, network.Options{Model: network.Model(n.cfg.Model), Queues: n.queues(), Vhost: n.cfg.VhostNet})
	if err != nil {
		return hypervisor.Attachment{}, err
	}
	defer device.Close() // QEMU has its own descriptors by then
	if device.NoVhost != "" && !n.noted[device.NoVhost] {
		n.noted[device.NoVhost] = true
		n.log.Infof("QEMU carries the frames, as there is no vhost-net: %s", device.NoVhost)
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Plug.Std())
	defer cancel()
	return m.vm.AttachNIC(ctx, hypervisor.NIC{
		ID: "net-" + strconv.Itoa(i.Index), MAC: i.MAC, MTU: i.MTU, Queues: device.Queues, Vhost: device.Vhost,
	})
}

func (n *podNetwork) queues() int {
	if n.cfg.Queues > 0 {
		return n.cfg.Queues
	}
	return min(n.vcpus, maxAutoQueues)
}

// configure tells the guest of its first network, once it is plugged.
func (n *podNetwork) configure(ctx context.Context, m *machine) error {
	select {
	case err := <-n.plugged:
		if err != nil {
			return fmt.Errorf("network of the sandbox: %w", err)
		}
	case <-ctx.Done():
		return fmt.Errorf("wait for the network of the sandbox: %w", context.Cause(ctx))
	}
	return n.sync(ctx, m)
}

// sync has the guest follow what has changed in the namespace. It is called
// before the first container, before each one that starts, and on changes.
func (n *podNetwork) sync(ctx context.Context, m *machine) error {
	if !n.follows() {
		return nil
	}
	select {
	case n.turn <- struct{}{}:
		defer func() { <-n.turn }()
	case <-ctx.Done():
		return fmt.Errorf("wait for another change of the network: %w", context.Cause(ctx))
	}
	found, err := n.scan()
	if err == nil {
		err = n.attach(ctx, m, func() (*network.Network, error) { return found, nil })
	}
	if err == nil {
		err = n.tell(ctx, m.agent, found)
	}
	if err != nil {
		return fmt.Errorf("network of the sandbox: %w", err)
	}
	return nil
}

// tell tells the guest what it does not know yet. A route may go with an address,
// so that they are all told again.
func (n *podNetwork) tell(ctx context.Context, agent *agentclient.Client, found *network.Network) error {
	known := map[int]network.Interface{}
	for _, i := range n.told.Interfaces {
		known[i.Index] = i
	}
	changed := false
	for _, i := range found.Interfaces {
		if reflect.DeepEqual(known[i.Index], i) {
			continue
		}
		if err := agent.UpdateInterface(ctx, guestInterface(i, n.nics[i.Index].path)); err != nil {
			return fmt.Errorf("interface %s: %w", i.Name, err)
		}
		changed = true
	}
	if changed || !reflect.DeepEqual(n.told.Routes, found.Routes) {
		if err := agent.UpdateRoutes(ctx, guestRoutes(found.Routes)); err != nil {
			return fmt.Errorf("routes: %w", err)
		}
	}
	if len(found.Neighbours) > 0 && !reflect.DeepEqual(n.told.Neighbours, found.Neighbours) {
		if err := agent.AddARPNeighbors(ctx, guestNeighbours(found.Neighbours)); err != nil {
			return fmt.Errorf("neighbours: %w", err)
		}
	}
	n.told = *found
	return nil
}

// guestInterface says it to an agent that knows interfaces by their MAC, as ours
// does, and to one that waits for a PCI path, as Kata's does.
func guestInterface(i network.Interface, path string) *pb.Interface {
	out := &pb.Interface{Device: i.Name, Name: i.Name, Mtu: uint64(i.MTU), HwAddr: i.MAC.String(), DevicePath: path}
	if i.NoARP {
		out.RawFlags = unix.IFF_NOARP
	}
	for _, p := range i.Addresses {
		out.IPAddresses = append(out.IPAddresses, &pb.IPAddress{
			Family: family(p.Addr().Is6()), Address: p.Addr().String(), Mask: strconv.Itoa(p.Bits()),
		})
	}
	return out
}

func guestRoutes(in []network.Route) []*pb.Route {
	var out []*pb.Route
	for _, r := range in {
		route := &pb.Route{
			Device: r.Device, Scope: uint32(r.Scope), Mtu: uint32(r.MTU), Family: family(r.Destination.Addr().Is6()),
		}
		if r.Destination.Bits() > 0 {
			route.Dest = r.Destination.String()
		}
		if r.Gateway.IsValid() {
			route.Gateway = r.Gateway.String()
		}
		if r.Source.IsValid() {
			route.Source = r.Source.String()
		}
		if r.OnLink {
			route.Flags = unix.RTNH_F_ONLINK
		}
		out = append(out, route)
	}
	return out
}

func guestNeighbours(in []network.Neighbour) []*pb.ARPNeighbor {
	var out []*pb.ARPNeighbor
	for _, e := range in {
		out = append(out, &pb.ARPNeighbor{
			ToIPAddress: &pb.IPAddress{Family: family(e.Address.Is6()), Address: e.Address.String()},
			Device:      e.Device, Lladdr: e.MAC.String(), State: unix.NUD_PERMANENT,
		})
	}
	return out
}

func family(v6 bool) pb.IPFamily {
	if v6 {
		return pb.IPFamily_v6
	}
	return pb.IPFamily_v4
}

// follow has the guest follow changes until ctx ends. One that it cannot follow
// is in the log, and the guest keeps what it had.
func (n *podNetwork) follow(ctx context.Context, m *machine) {
	for n.changes != nil {
		if err := n.changes.Next(ctx); err != nil {
			if ctx.Err() == nil {
				n.log.WithError(err).Error("changes of the network namespace are not followed any more")
			}
			return
		}
		if err := n.sync(ctx, m); err != nil && ctx.Err() == nil {
			n.log.WithError(err).Error("the guest cannot follow a change of its network namespace")
		}
	}
}

// close takes down what the sandbox made in the namespace, and lets go of it.
// The VM must have ended. It may be called more than once.
func (n *podNetwork) close() error {
	if n.changes != nil {
		_ = n.changes.Close()
		n.changes = nil
	}
	if n.ns == nil {
		return nil
	}
	if err := n.ns.Teardown(); err != nil {
		return err // and a further call tries again
	}
	n.ns.Close()
	n.ns = nil
	return nil
}
