package rootfs_test

import (
	"archive/tar"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
)

// TestARootThatAnybodyMayWriteToIsWarnedOf has layers whose tar lists the root,
// and layers whose tar does not; each alone, merged and in partitions, and below
// a writable layer, whose root is seen instead.
func TestARootThatAnybodyMayWriteToIsWarnedOf(t *testing.T) {
	dir := t.TempDir()
	root := erofstest.Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}}
	listed := erofstest.Layer(t, dir, "listed", []erofstest.Entry{root, erofstest.File("a", "a")})
	unlisted := erofstest.Layer(t, dir, "unlisted", []erofstest.Entry{erofstest.File("b", "b")})
	for name, c := range map[string]struct {
		layers []string // topmost first
		how    rootfs.Layers
		warned bool
	}{
		"listed alone":          {[]string{listed}, rootfs.LayersAuto, false},
		"unlisted alone":        {[]string{unlisted}, rootfs.LayersAuto, true},
		"merged":                {[]string{listed, unlisted}, rootfs.LayersMerge, true},
		"partition of listed":   {[]string{listed, unlisted}, rootfs.LayersPartition, false},
		"partition of unlisted": {[]string{unlisted, listed}, rootfs.LayersPartition, true},
	} {
		t.Run(name, func(t *testing.T) {
			planner := plannerWith(t, func(o *rootfs.Options) { o.Layers = c.how })
			var mounts []rootfs.Mount
			for _, l := range c.layers {
				mounts = append(mounts, rootfs.Mount{Type: "erofs", Source: l, Options: []string{"ro", "loop"}})
			}
			if len(mounts) > 1 {
				mounts = append(mounts, rootfs.Mount{Type: "format/overlay", Options: []string{"ro", "lowerdir={{ overlay 0 1 }}"}})
			}
			plan, err := planner.Plan(deadline(t), mounts)
			must(t, err)
			if warned := len(plan.Warnings) == 1 && strings.Contains(plan.Warnings[0], "0777"); warned != c.warned || len(plan.Warnings) > 1 {
				t.Errorf("warnings %q, want one: %v", plan.Warnings, c.warned)
			}
			plan, err = planner.Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), c.layers...))
			must(t, err)
			if len(plan.Warnings) > 0 {
				t.Errorf("warnings %q below a writable layer", plan.Warnings)
			}
		})
	}
}
