package e2e

import (
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/truth/layers"
)

// TestSettingsOfTheSnapshotter: whatever containerd's EROFS snapshotter and
// differ are told, the container sees the image.
func TestSettingsOfTheSnapshotter(t *testing.T) {
	type keys = map[string]any
	for _, c := range []struct {
		name                string
		options             harness.Options
		strategy, upperDisk string // "" for an upper layer in memory
	}{
		{"indexes of tars", harness.Options{Differ: keys{"enable_tar_index": true}}, "merged", "raw"},
		{"no writable image", harness.Options{Snapshotter: keys{"default_size": "0"}}, "merged", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			bed := e2etest.Own(t, c.options)
			trace := containerSeesTheImage(t, bed, "two")
			if trace.Strategy != c.strategy {
				t.Errorf("strategy %s (%s), want %s", trace.Strategy, trace.Reason, c.strategy)
			}
			upper := ""
			for _, d := range trace.Disks {
				if d.Role == "upper" {
					upper = d.Driver
				}
			}
			if upper != c.upperDisk {
				t.Errorf("the writable layer is on a disk of driver %q, want %q", upper, c.upperDisk)
			}
		})
	}
}

// TestProtectedLayersReachTheGuestWithTheirTrees: the snapshotter names the
// metadata file that lies beside a layer. containerd's own differ makes these, and
// its client looks into the snapshot, only on hosts whose kernel has dm-verity; so
// here the test does the one, with the differ's library, and leaves out the other.
func TestProtectedLayersReachTheGuestWithTheirTrees(t *testing.T) {
	bed := e2etest.Own(t, harness.Options{})
	image := bed.Image(t, "two", harness.Snapshotter)
	for _, path := range layerFiles(t, bed, image) {
		if _, err := layers.Protect(path); err != nil {
			t.Fatal(err)
		}
	}
	trace := containerSeesTheImage(t, bed, "two", prepare(t, bed, image, "run")...)
	if trace.Strategy != "partitioned" || !strings.Contains(trace.Reason, "dm-verity") {
		t.Errorf("strategy %s (%s), want partitioned for dm-verity", trace.Strategy, trace.Reason)
	}
}
