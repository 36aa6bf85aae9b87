// Package cni gives containers of tests a network with real CNI plugins, on a
// node that is a network namespace: bridges, addresses and rules of the plugins
// are there and nowhere on the host, and go with it.
//
// A Node and its Pods may be used from one goroutine at a time. They own network
// namespaces and a directory with the addresses that were given away, and
// start nothing that outlives a call.
package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness"
)

// version is that of the CNI specification that the plugins are asked in.
const version = "1.0.0"

// Node is a network namespace that stands for the host.
type Node struct {
	tree harness.Tree
	dir  string
	ns   *os.File
}

// NewNode makes a node whose plugins keep their state in dir. Close it.
func NewNode(tree harness.Tree, dir string) (*Node, error) {
	n := &Node{tree: tree, dir: dir}
	if err := harness.Need("tools", n.plugins()); err != nil {
		return nil, err
	}
	var err error
	if n.ns, err = newNetNS(); err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		n.ns.Close()
		return nil, err
	}
	return n, nil
}

// Plugins is the folder of the plugins.
func (n *Node) Plugins() string { return n.plugins() }

// List is the configuration of a network, for others who run the plugins.
func (n *Node) List(w Network) ([]byte, error) {
	return json.Marshal(map[string]any{"cniVersion": version, "name": w.Bridge, "plugins": n.list(w, nil)})
}

func (n *Node) plugins() string { return n.tree.Tool("cni", "usr", "lib", "cni") }

// Close lets go of the node, which ends with its last pod.
func (n *Node) Close() error { return n.ns.Close() }

// Do runs f on a thread of the node: sockets that it opens are the node's.
func (n *Node) Do(f func() error) error { return inside(n.ns, f) }

// Network is a CNI network: a bridge on the node with addresses to give away.
type Network struct {
	Bridge  string
	MTU     int
	Subnets []netip.Prefix
	// Default makes the bridge the way to everywhere else.
	Default bool
}

// list are the configurations of the plugins, in their order.
func (n *Node) list(w Network, ports map[int]int) []map[string]any {
	var ranges [][]map[string]any
	var routes []map[string]any
	for _, s := range w.Subnets {
		ranges = append(ranges, []map[string]any{{"subnet": s.String()}})
		to := "0.0.0.0/0"
		if s.Addr().Is6() {
			to = "::/0"
		}
		if w.Default {
			routes = append(routes, map[string]any{"dst": to})
		}
	}
	bridge := map[string]any{
		"type": "bridge", "bridge": w.Bridge, "isGateway": true, "mtu": w.MTU,
		"ipam": map[string]any{"type": "host-local", "dataDir": filepath.Join(n.dir, "ipam"), "ranges": ranges, "routes": routes},
	}
	if len(ports) == 0 {
		return []map[string]any{bridge}
	}
	var mappings []map[string]any
	for host, pod := range ports {
		mappings = append(mappings, map[string]any{"hostPort": host, "containerPort": pod, "protocol": "tcp"})
	}
	portmap := map[string]any{"type": "portmap", "runtimeConfig": map[string]any{"portMappings": mappings}}
	return []map[string]any{bridge, portmap}
}

// Pod is a network namespace that plugins put interfaces into.
type Pod struct {
	node *Node
	id   string
	path string
	ns   *os.File // nil if it is somebody else's
	undo []func(context.Context) error
}

// NewPod makes an empty namespace. Close it.
func (n *Node) NewPod(id string) (*Pod, error) {
	ns, err := newNetNS()
	if err != nil {
		return nil, err
	}
	// What a runtime does with a mount is good for this process alone: so
	// nothing is left on the host when it is killed.
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
	return &Pod{node: n, id: id, path: path, ns: ns}, nil
}

// PodAt is the pod in a namespace that is there, as ctr run --cni has it.
func (n *Node) PodAt(id, path string) *Pod { return &Pod{node: n, id: id, path: path} }

// Path leads to the namespace as long as this process has it.
func (p *Pod) Path() string { return p.path }

// Interface is what the plugins of a network gave to a pod.
type Interface struct {
	MAC       string
	Addresses []netip.Prefix
	Gateways  []netip.Addr
}

// Add has the plugins make an interface. ports leads ports of the node to those of the pod.
func (p *Pod) Add(ctx context.Context, name string, w Network, ports map[int]int) (Interface, error) {
	if err := p.loopback(ctx); err != nil {
		return Interface{}, err
	}
	list := p.node.list(w, ports)
	var result map[string]any
	for i, conf := range list {
		out, err := p.run(ctx, "ADD", name, w.Bridge, conf, result)
		if err != nil {
			return Interface{}, err
		}
		result = nil
		if err := json.Unmarshal(out, &result); err != nil {
			return Interface{}, fmt.Errorf("result of the plugin %s: %w", conf["type"], err)
		}
		had := maps.Clone(result)
		p.undo = append(p.undo, func(ctx context.Context) error {
			_, err := p.run(ctx, "DEL", name, w.Bridge, list[i], had)
			return err
		})
	}
	return parse(result, p.path)
}

func (p *Pod) loopback(ctx context.Context) error {
	_, err := p.run(ctx, "ADD", "lo", "lo", map[string]any{"type": "loopback"}, nil)
	return err
}

// run runs one plugin on the node.
func (p *Pod) run(ctx context.Context, command, name, network string, conf, previous map[string]any) ([]byte, error) {
	conf = maps.Clone(conf)
	conf["cniVersion"], conf["name"] = version, network
	if previous != nil {
		conf["prevResult"] = previous
	}
	text, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	kind := fmt.Sprint(conf["type"])
	tools := p.node.tree.Tool("cni")
	cmd := exec.CommandContext(ctx, filepath.Join(p.node.plugins(), kind))
	cmd.Env = []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.path, "CNI_IFNAME=" + name,
		"CNI_PATH=" + p.node.plugins(),
		"PATH=" + filepath.Join(tools, "usr/sbin") + ":" + os.Getenv("PATH"),
		"XTABLES_LIBDIR=" + filepath.Join(tools, "usr/lib/x86_64-linux-gnu/xtables"),
	}
	cmd.Stdin = bytes.NewReader(text)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := p.node.Do(cmd.Run); err != nil {
		return nil, fmt.Errorf("CNI plugin %s, %s %s: %w: %s%s", kind, command, name, err, &stdout, &stderr)
	}
	return stdout.Bytes(), nil
}

// parse reads the interface in the pod from a result of CNI.
func parse(result map[string]any, path string) (Interface, error) {
	text, err := json.Marshal(result)
	if err != nil {
		return Interface{}, err
	}
	var r struct {
		Interfaces []struct{ Name, Mac, Sandbox string }
		IPs        []struct {
			Address netip.Prefix
			Gateway netip.Addr
		}
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return Interface{}, fmt.Errorf("result of CNI: %w", err)
	}
	var out Interface
	for _, i := range r.Interfaces {
		if i.Sandbox == path {
			out.MAC = i.Mac
		}
	}
	for _, ip := range r.IPs {
		out.Addresses = append(out.Addresses, ip.Address)
		out.Gateways = append(out.Gateways, ip.Gateway)
	}
	return out, nil
}

// Do runs f on a thread of the pod: sockets that it opens and programs that it
// starts are there.
func (p *Pod) Do(f func() error) error {
	if p.ns != nil {
		return inside(p.ns, f)
	}
	ns, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return inside(ns, f)
}

// Links are the names of what is in the pod's namespace, and the kinds of what
// filters frames there.
func (p *Pod) Links() (names, filters []string, err error) {
	err = p.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			names = append(names, l.Attrs().Name)
			qdiscs, err := netlink.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range qdiscs {
				if q.Type() == "clsact" || q.Type() == "ingress" {
					filters = append(filters, l.Attrs().Name+" "+q.Type())
				}
			}
		}
		return nil
	})
	return names, filters, err
}

// Close has the plugins remove what they made, in reverse, and lets go of the
// namespace. It may be called more than once.
func (p *Pod) Close(ctx context.Context) error {
	var errs []error
	for _, undo := range slices.Backward(p.undo) {
		errs = append(errs, undo(ctx))
	}
	p.undo = nil
	if p.ns != nil {
		errs = append(errs, p.ns.Close())
		p.ns = nil
	}
	return errors.Join(errs...)
}

// Dial connects from the node.
func (n *Node) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		// Nothing is looked up, so that the socket is made on this thread.
		conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on the node.
func (n *Node) Listen(network, address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

func newNetNS() (ns *os.File, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

func inside(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it, which the main one would not.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}
