package cri

import (
	"flag"
	"net/netip"
	"testing"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/cni"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/image"
)

var all = flag.Bool("all", false, "every containerd, and what takes longer")

func TestMain(m *testing.M) {
	flag.Parse()
	e2etest.Main(m)
}

// The runtime handlers of the tests: two ways into a pod, the first with a pause
// container that runs, and the second with the host's files through virtio-fs, and
// with streams that containerd opens to the shim, where otherwise there are fifos.
const (
	podsandbox = "podsandbox"
	sandboxAPI = "sandbox-api"
	realPause  = "real-pause"
	virtioFS   = "virtio-fs"
	streaming  = "streaming"
)

// handlers are those that a release of containerd is asked for.
func handlers(release string) []string {
	switch {
	case release == "2.2.9":
		return []string{podsandbox}
	case *all && release == harness.Releases[0]:
		return []string{podsandbox, sandboxAPI, realPause, virtioFS, streaming}
	}
	return []string{podsandbox, sandboxAPI}
}

// releases are the containerds that are asked.
func releases() []string {
	if *all {
		return harness.Releases[:]
	}
	return harness.Releases[:1]
}

// grouped puts each pod into its cgroup, which is the default of the runtime but not of
// the tests.
func grouped(c harness.ShimConfig) { c.Set("host", "cgroup", "pod") }

// startCRI starts a containerd for the test, with the images in it, on a node of
// its own: the bridge of its pods is not the host's.
func startCRI(t *testing.T, release string) *runtime {
	t.Helper()
	tree, err := harness.FindTree()
	if err != nil {
		t.Fatal(err)
	}
	node, err := cni.NewNode(tree, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	list, err := node.List(cni.Network{Bridge: "pods", MTU: 1450, Default: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.9.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	bed := e2etest.Own(t, harness.Options{Release: release, Enter: node.Do, CRI: &harness.CRI{
		Pause: image.Pause, Plugins: node.Plugins(), Network: list,
		Handlers: map[string]harness.Handler{
			podsandbox: {Sandboxer: "podsandbox", ShimConfig: grouped},
			sandboxAPI: {Sandboxer: "shim", ShimConfig: grouped},
			streaming:  {Sandboxer: "shim", IOType: "streaming", ShimConfig: grouped},
			realPause: {Sandboxer: "podsandbox", ShimConfig: func(c harness.ShimConfig) {
				grouped(c.Set("guest", "pause", "run").Set("network", "host", "loopback"))
			}},
			virtioFS: {Sandboxer: "shim", ShimConfig: func(c harness.ShimConfig) {
				grouped(c.Set("mounts", "bind", "virtiofs").Set("mounts", "virtiofsd", tree.Virtiofsd()))
			}},
		},
	}})
	for _, archive := range []string{"one", "two", "pause"} {
		bed.Image(t, archive, harness.Snapshotter)
	}
	r := &runtime{bed: bed, node: node}
	t.Cleanup(func() { r.close() })
	r.connect(t)
	r.awaitImages(t, image.One, image.Two, image.Pause)
	return r
}
