package cni

import (
	"context"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestPodHasWhatThePluginsSay is about the package, and that the plugins run here.
func TestPodHasWhatThePluginsSay(t *testing.T) {
	tree, err := harness.FindTree()
	if err != nil {
		t.Fatal(err)
	}
	need.NoError(t, harness.Need("tools", tree.Tool("cni")))
	need.Root(t, "to make network namespaces")
	node, err := NewNode(tree, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pod, err := node.NewPod("pod")
	if err != nil {
		t.Fatal(err)
	}
	w := Network{Bridge: "cni0", MTU: 1450, Default: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.7.0/24"), netip.MustParsePrefix("fd00:88::/64")}}
	got, err := pod.Add(ctx, "eth0", w, map[int]int{8080: 80})
	if err != nil {
		t.Fatal(err)
	}
	if got.MAC == "" || len(got.Addresses) != 2 || got.Gateways[0] != netip.MustParseAddr("10.88.7.1") {
		t.Errorf("%+v", got)
	}
	// The pod itself answers at its port, and by way of the node's.
	var conns []io.Closer
	listening := make(chan error, 1)
	if err := pod.Do(func() error {
		l, err := (&Node{ns: pod.ns}).Listen("tcp", ":80")
		if err != nil {
			return err
		}
		conns = append(conns, l)
		go func() {
			for range 2 {
				c, err := l.Accept()
				if err != nil {
					listening <- err
					return
				}
				c.Close()
			}
			listening <- nil
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{netip.AddrPortFrom(got.Addresses[0].Addr(), 80).String(), "10.88.7.1:8080"} {
		c, err := node.Dial(ctx, "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if err := <-listening; err != nil {
		t.Error(err)
	}
	conns[0].Close()
	names, filters, err := pod.Links()
	if err != nil || !slices.Contains(names, "eth0") || len(filters) > 0 {
		t.Errorf("%q, %q, %v", names, filters, err)
	}
	for range 2 {
		if err := pod.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}
