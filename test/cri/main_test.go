package cri

import (
	"flag"
	"testing"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/image"
)

var all = flag.Bool("all", false, "every containerd, and what takes longer")

func TestMain(m *testing.M) {
	flag.Parse()
	e2etest.Main(m)
}

// The runtime handlers of the tests: two ways into a pod, and the first with a
// pause container that runs.
const (
	podsandbox = "podsandbox"
	sandboxAPI = "sandbox-api"
	realPause  = "real-pause"
)

// handlers are those that a release of containerd is asked for.
func handlers(release string) []string {
	switch {
	case release == "2.2.9":
		return []string{podsandbox}
	case *all:
		return []string{podsandbox, sandboxAPI, realPause}
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

// startCRI starts a containerd for the test, with the images in it.
func startCRI(t *testing.T, release string) *runtime {
	t.Helper()
	bed := e2etest.Own(t, harness.Options{Release: release, CRI: &harness.CRI{
		Pause: image.Pause,
		Handlers: map[string]harness.Handler{
			podsandbox: {Sandboxer: "podsandbox"},
			sandboxAPI: {Sandboxer: "shim"},
			realPause: {Sandboxer: "podsandbox", ShimConfig: func(c harness.ShimConfig) {
				c.Set("guest", "pause", "run")
			}},
		},
	}})
	for _, archive := range []string{"one", "two", "pause"} {
		bed.Image(t, archive, harness.Snapshotter)
	}
	r := &runtime{bed: bed}
	r.connect(t)
	r.awaitImages(t, image.One, image.Two, image.Pause)
	return r
}
