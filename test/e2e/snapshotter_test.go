package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/oci"

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

// TestACommittedSnapshotHasWhatTheContainerWrote: what was written in a VM is a
// layer of the next container, once the first one is deleted.
func TestACommittedSnapshotHasWhatTheContainerWrote(t *testing.T) {
	bed := e2etest.Own(t, harness.Options{})
	image := bed.Image(t, "two", harness.Snapshotter)
	script := "echo written > /srv/new; rm /etc/image; mkdir -p /deep/er; ln -s /srv/new /deep/er/link"
	c, code := bed.Run(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", script}, Rootfs: prepare(t, bed, image, "written"), Opts: []oci.SpecOpts{oci.WithDefaultPathEnv}})
	if code != 0 {
		t.Fatalf("code %d: %s", code, c.Stderr)
	}
	ctx, cancel := context.WithTimeout(bed.Context(context.Background()), e2etest.Boot)
	defer cancel()
	service := bed.Client().SnapshotService(harness.Snapshotter)
	label := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"})
	if err := service.Commit(ctx, "committed", "written", label); err != nil {
		t.Fatal(err)
	}
	mounts, err := service.Prepare(ctx, "next", "committed", label)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, key := range []string{"next", "committed"} {
			if err := service.Remove(ctx, key); err != nil {
				t.Errorf("remove %s: %v", key, err)
			}
		}
	}()
	c, code = bed.Run(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", "cat /deep/er/link; ls /etc/image"}, Rootfs: mounts, Opts: []oci.SpecOpts{oci.WithDefaultPathEnv}})
	if code == 0 || c.Stdout.String() != "written\n" || !strings.Contains(c.Stderr.String(), "No such file") {
		t.Errorf("code %d, %q, %q: want what was written, and not what was removed", code, c.Stdout, c.Stderr)
	}
}
