package rootfs_test

import (
	"fmt"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// BenchmarkPlan is the plan and the text of the descriptor of an image whose
// index is in the cache, which is every start of a container but the first.
func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{1, 10, 100, 500} {
		b.Run(fmt.Sprintf("layers=%d", n), func(b *testing.B) {
			planner, mounts := newPlanner(b), blockMounts(ext4Image(b, 1<<20), chain(b, b.TempDir(), n)...)
			ctx := deadline(b)
			if _, err := planner.Plan(ctx, mounts); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				plan, err := planner.Plan(ctx, mounts)
				if err != nil {
					b.Fatal(err)
				}
				if plan.Strategy != rootfs.StrategyMerged {
					continue
				}
				if _, err := vmdk.Descriptor(plan.Disks[1].Extents); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkColdPlan also builds the index.
func BenchmarkColdPlan(b *testing.B) {
	for _, n := range []int{10, 100} {
		b.Run(fmt.Sprintf("layers=%d", n), func(b *testing.B) {
			mounts := blockMounts(ext4Image(b, 1<<20), chain(b, b.TempDir(), n)...)
			ctx := deadline(b)
			for b.Loop() {
				if _, err := newPlanner(b).Plan(ctx, mounts); err != nil {
					b.Fatal(err)
				}
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
		if _, err := rootfs.Classify(mounts); err != nil {
			b.Fatal(err)
		}
	}
}
