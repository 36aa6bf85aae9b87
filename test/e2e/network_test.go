package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/cni"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// The networks of the node. One is as an overlay leaves room for, the other has
// large frames.
var (
	podNetwork = cni.Network{
		Bridge: "pods", MTU: 1450, Default: true,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.7.0/24"), netip.MustParsePrefix("fd00:88::/64")},
	}
	jumboNetwork = cni.Network{Bridge: "jumbo", MTU: 9000, Subnets: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}}
)

// serve answers over HTTP with who is asked.
func serve(who string) []string {
	return []string{"sh", "-c", "mkdir -p /srv/www && echo " + who + " >/srv/www/who && echo serving && exec busybox httpd -f -p 80 -h /srv/www"}
}

// newNode is a node without pods.
func newNode(t *testing.T, bed *e2etest.Bed) *cni.Node {
	t.Helper()
	node, err := cni.NewNode(bed.Tree, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	return node
}

func addNetwork(t *testing.T, p *cni.Pod, name string, w cni.Network, ports map[int]int) cni.Interface {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Step)
	defer cancel()
	i, err := p.Add(ctx, name, w, ports)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func closePod(t *testing.T, p *cni.Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), e2etest.Step)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}

// wantNoTrace fails if a sandbox has left anything in the pod's namespace.
func wantNoTrace(t *testing.T, p *cni.Pod) {
	t.Helper()
	names, filters, err := p.Links()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "erofsvm") }) || len(filters) > 0 {
		t.Errorf("left in the network namespace: %q, %q", names, filters)
	}
}

// inside runs a command in a container and returns what it prints.
func inside(t *testing.T, c *e2etest.Container, args ...string) string {
	t.Helper()
	out, errs, code := c.RunExec(t, args...)
	if code != 0 {
		t.Errorf("%s in %s: code %d: %s%s", strings.Join(args, " "), c.ID, code, out, errs)
	}
	return out
}

// TestNetworkOfAPod: with real CNI plugins, two pods reach each other, and the
// node and they each other, by every network that they have. One has its
// network before it is created, as Kubernetes does it, the other one afterwards,
// as `ctr run --cni` does it; frames come to one by way of taps, to the other of
// macvtaps with more queues than it has processors.
func TestNetworkOfAPod(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	node := newNode(t, bed)
	first, err := node.NewPod("first")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePod(t, first) })
	eth0 := addNetwork(t, first, "eth0", podNetwork, map[int]int{8080: 80})
	net1 := addNetwork(t, first, "net1", jumboNetwork, nil)
	a := bed.Start(t, e2etest.Spec{Image: image, Args: serve("first"),
		Opts: []oci.SpecOpts{oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: first.Path()})}})

	macvtap := filepath.Join(t.TempDir(), "shim.toml")
	if err := bed.ShimConfig().Set("network", "model", "macvtap").Set("network", "queues", 2).Write(macvtap); err != nil {
		t.Fatal(err)
	}
	b, err := bed.Create(t, e2etest.Spec{Image: image, Args: serve("second"), Config: macvtap})
	if err != nil {
		t.Fatal(err)
	}
	second := node.PodAt("second", fmt.Sprintf("/proc/%d/ns/net", b.Task.Pid()))
	t.Cleanup(func() { closePod(t, second) })
	other0 := addNetwork(t, second, "eth0", podNetwork, nil)
	other1 := addNetwork(t, second, "net1", jumboNetwork, nil)
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
	defer cancel()
	if err := b.Task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	a.Stdout.WaitFor(t, "serving")
	b.Stdout.WaitFor(t, "serving")

	t.Run("interfaces are those of CNI", func(t *testing.T) {
		for _, pod := range []struct {
			c          *e2etest.Container
			eth0, net1 cni.Interface
		}{{a, eth0, net1}, {b, other0, other1}} {
			shown := inside(t, pod.c, "ip", "addr") + inside(t, pod.c, "ip", "route") + inside(t, pod.c, "ip", "-6", "route")
			for _, want := range []string{
				pod.eth0.MAC, pod.net1.MAC, "mtu 1450", "mtu 9000",
				"inet " + pod.eth0.Addresses[0].String(), "inet6 " + pod.eth0.Addresses[1].String(), "inet " + pod.net1.Addresses[0].String(),
				"default via 10.88.7.1 dev eth0", "10.99.0.0/24 dev net1", "default via fd00:88::1 dev eth0",
			} {
				if !strings.Contains(shown, want) {
					t.Errorf("%s has no %q:\n%s", pod.c.ID, want, shown)
				}
			}
		}
	})
	t.Run("ping", func(t *testing.T) {
		for _, to := range []string{"10.88.7.1", "fd00:88::1", "10.99.0.1"} { // the node
			inside(t, a, "busybox", "ping", "-c", "1", "-W", "10", to)
			inside(t, b, "busybox", "ping", "-c", "1", "-W", "10", to)
		}
		for _, to := range slices.Concat(other0.Addresses, other1.Addresses) {
			inside(t, a, "busybox", "ping", "-c", "1", "-W", "10", to.Addr().String())
		}
		// As large as the frames of each network.
		inside(t, a, "busybox", "ping", "-c", "1", "-W", "10", "-s", "1422", other0.Addresses[0].Addr().String())
		inside(t, a, "busybox", "ping", "-c", "1", "-W", "10", "-s", "8972", other1.Addresses[0].Addr().String())
	})
	t.Run("TCP between pods", func(t *testing.T) {
		for _, to := range slices.Concat(other0.Addresses, other1.Addresses) {
			if got := ask(t, a, to.Addr()); !strings.HasSuffix(got, "\r\n\r\nsecond\n") {
				t.Errorf("%s answers %q", to, got)
			}
		}
		if got := ask(t, b, eth0.Addresses[0].Addr()); !strings.HasSuffix(got, "\r\n\r\nfirst\n") {
			t.Errorf("%s answers %q", eth0.Addresses[0], got)
		}
	})
	t.Run("TCP from the node", func(t *testing.T) {
		for address, want := range map[string]string{
			netip.AddrPortFrom(eth0.Addresses[0].Addr(), 80).String():   "first\n",
			netip.AddrPortFrom(eth0.Addresses[1].Addr(), 80).String():   "first\n",
			netip.AddrPortFrom(other1.Addresses[0].Addr(), 80).String(): "second\n",
			"10.88.7.1:8080": "first\n", // portmap
		} {
			if got := fetch(t, node, address); !strings.HasSuffix(got, "\r\n\r\n"+want) {
				t.Errorf("%s answers %q", address, got)
			}
		}
	})
	t.Run("TCP to the node", func(t *testing.T) {
		l, err := node.Listen("tcp", "10.88.7.1:9000")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		const mib = 4
		received := make(chan int64, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				received <- -1
				return
			}
			defer c.Close()
			n, _ := io.Copy(io.Discard, c)
			received <- n
		}()
		begun := time.Now()
		inside(t, a, "sh", "-c", fmt.Sprintf("dd if=/dev/zero bs=1M count=%d 2>/dev/null | busybox nc 10.88.7.1 9000", mib))
		if n := <-received; n != mib<<20 {
			t.Errorf("%d bytes came, want %d", n, mib<<20)
		}
		t.Logf("%.1f MiB/s, the exec included", mib/time.Since(begun).Seconds())
	})
	t.Run("statistics", func(t *testing.T) {
		var names []string
		for _, n := range metrics(t, bed, a).Network {
			names = append(names, n.Name)
			if n.Name == "eth0" && (n.RxBytes == 0 || n.TxBytes < 4<<20) {
				t.Errorf("eth0 %+v", n)
			}
		}
		if !slices.Contains(names, "eth0") || !slices.Contains(names, "net1") {
			t.Errorf("interfaces %q", names)
		}
	})
	t.Run("an address that comes later", func(t *testing.T) {
		addNetwork(t, first, "net2", cni.Network{Bridge: "late", MTU: 1500, Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")}}, nil)
		inside(t, a, "timeout", "20", "sh", "-c", "until ip addr show net2 2>/dev/null | grep -q 10.77.0.; do sleep 0.1; done; busybox ping -c 1 -W 10 10.77.0.1")
	})
	a.Kill(t, syscall.SIGKILL)
	a.WaitExit(t)
	a.Delete(t)
	wantNoTrace(t, first)
	b.Kill(t, syscall.SIGKILL)
	b.WaitExit(t)
	b.Delete(t)
}

// request is what serve answers.
const request = "GET /who HTTP/1.0\r\n\r\n"

// ask asks a pod from another one.
func ask(t *testing.T, c *e2etest.Container, address netip.Addr) string {
	t.Helper()
	return inside(t, c, "sh", "-c", fmt.Sprintf("printf %q | busybox nc -w 20 %s 80", request, address))
}

// fetch asks a pod from the node.
func fetch(t *testing.T, node *cni.Node, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Step)
	defer cancel()
	conn, err := node.Dial(ctx, "tcp", address)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.(*net.TCPConn).SetDeadline(deadline); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Error(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("%s: %v", address, err)
	}
	return string(answer)
}
