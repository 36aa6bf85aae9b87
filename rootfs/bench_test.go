package rootfs_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

var layerCounts = []int{1, 10, 100, 500}

// BenchmarkPlan is the plan and the text of the descriptor of an image whose
// index is in the cache, which is every start of a container but the first; as
// the shim makes it, which keeps the files open until the VM has them, and as
// "erofsvm plan" does.
func BenchmarkPlan(b *testing.B) {
	for _, n := range layerCounts {
		mounts := blockMounts(ext4Image(b, 1<<20), chain(b, b.TempDir(), n)...)
		for _, lend := range []bool{false, true} {
			b.Run(fmt.Sprintf("layers=%d/lend=%v", n, lend), func(b *testing.B) {
				planner := plannerWith(b, func(o *rootfs.Options) { o.Lend = lend })
				ctx := deadline(b)
				plan := func() {
					plan, err := planner.Plan(ctx, mounts)
					must(b, err)
					if plan.Strategy == rootfs.StrategyMerged {
						_, err = vmdk.Descriptor(plan.Disks[1].Extents)
						must(b, err)
					}
					must(b, plan.Close())
				}
				plan()
				b.ReportAllocs()
				for b.Loop() {
					plan()
				}
			})
		}
	}
}

// BenchmarkPartitionedPlan is the same for layers that have a partition each.
func BenchmarkPartitionedPlan(b *testing.B) {
	for _, n := range []int{10, 100, 120} {
		mounts := blockMounts(ext4Image(b, 1<<20), chain(b, b.TempDir(), n)...)
		b.Run(fmt.Sprintf("layers=%d", n), func(b *testing.B) {
			planner := plannerWith(b, func(o *rootfs.Options) { o.Layers = rootfs.LayersPartition })
			ctx := deadline(b)
			b.ReportAllocs()
			for b.Loop() {
				plan, err := planner.Plan(ctx, mounts)
				must(b, err)
				_, err = vmdk.Descriptor(vmdk.Resolve(plan.Disks[1].Extents, "/generated"))
				must(b, err)
			}
		})
	}
}

// BenchmarkColdPlan also builds the index: what the first container of an image
// pays, with the layers in the page cache.
func BenchmarkColdPlan(b *testing.B) {
	for _, n := range layerCounts[1:] {
		b.Run(fmt.Sprintf("layers=%d", n), func(b *testing.B) {
			mounts := blockMounts(ext4Image(b, 1<<20), chain(b, b.TempDir(), n)...)
			ctx, caches, round := deadline(b), b.TempDir(), 0
			for b.Loop() {
				round++
				planner := rootfs.NewPlanner(rootfs.Options{CacheDir: filepath.Join(caches, fmt.Sprint(round)), MkfsErofs: erofstest.Mkfs(b)})
				_, err := planner.Plan(ctx, mounts)
				must(b, err)
			}
		})
	}
}

// BenchmarkClassify is the pure part.
func BenchmarkClassify(b *testing.B) {
	layers := make([]string, 100)
	for i := range layers {
		layers[i] = fmt.Sprintf("/var/lib/containerd/io.containerd.snapshotter.v1.erofs/snapshots/%d/layer.erofs", i)
	}
	mounts := blockMounts("/var/lib/rwlayer.img", layers...)
	b.ReportAllocs()
	for b.Loop() {
		_, err := rootfs.Classify(mounts)
		must(b, err)
	}
}
