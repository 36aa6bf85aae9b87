package rootfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
)

// TestTarLayersAreSeenAsTheirTars mounts what QEMU reads of layers that are
// indexes of tars, alone, merged and in partitions, and beside it the same tars
// as plain layers under an overlay.
func TestTarLayersAreSeenAsTheirTars(t *testing.T) {
	needMounts(t)
	tars, plains := oddLayers(t, t.TempDir(), erofstest.TarLayer), oddLayers(t, t.TempDir(), plain)
	upper := ext4Image(t, 1<<20)
	index := filepath.Join(t.TempDir(), "index.erofs")
	makeIndex(t, index, tars)
	mixed := slices.Clone(tars)
	mixed[1], mixed[3] = plains[1], plains[3]

	for name, c := range map[string]struct {
		mounts   []rootfs.Mount
		layers   []string // plain ones with the same content
		strategy rootfs.Strategy
		layout   rootfs.Layers
	}{
		"alone":            {blockMounts(upper, tars[0]), plains[:1], rootfs.StrategyRaw, ""},
		"merged here":      {blockMounts(upper, tars...), plains, rootfs.StrategyMerged, ""},
		"index came":       {indexMounts(upper, index, tars...), plains, rootfs.StrategyMerged, ""},
		"partitions":       {blockMounts(upper, tars...), plains, rootfs.StrategyPartitioned, rootfs.LayersPartition},
		"mixed with plain": {blockMounts(upper, mixed...), plains, rootfs.StrategyPartitioned, ""},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := plannerWith(t, func(o *rootfs.Options) { o.Layers = c.layout }).Plan(deadline(t), c.mounts)
			if err != nil {
				t.Fatal(err)
			}
			if plan.Strategy != c.strategy {
				t.Errorf("strategy %s because %q, want %s", plan.Strategy, plan.Reason, c.strategy)
			}
			disk := plan.Disks[1]
			var files []string
			switch disk.Driver {
			case rootfs.DriverRaw:
				files = []string{disk.Path}
			case rootfs.DriverVMDK:
				if files = []string{qemuReads(t, disk)}; disk.Partitions != nil {
					files = partitions(t, disk)
				}
			}
			union := trees(t, c.layers, files)
			if !slices.Equal(union[1][1:], union[0][1:]) {
				t.Errorf("tar layers:\n%s\nplain ones:\n%s", strings.Join(union[1], "\n"), strings.Join(union[0], "\n"))
			}
		})
	}
}

// TestTheExtentOfATarLayerIsTheTar wants the index left out and nothing behind
// the blocks of the table.
func TestTheExtentOfATarLayerIsTheTar(t *testing.T) {
	tars := oddLayers(t, t.TempDir(), erofstest.TarLayer)
	plan, err := newPlanner(t).Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), tars...))
	if err != nil {
		t.Fatal(err)
	}
	meta := erofstest.Inspect(t, plan.Disks[1].Extents[0].Path)
	for i, e := range plan.Disks[1].Extents[1:] {
		layer := erofstest.Inspect(t, tars[i])
		if e.Path != tars[i] || e.Offset != layer.Super.Blocks || e.Sectors != meta.Super.Devices[i].Blocks {
			t.Errorf("extent %+v, want %d sectors at %d of %s", e, meta.Super.Devices[i].Blocks, layer.Super.Blocks, tars[i])
		}
	}
}

// TestATarThatIsCutIsTruncated also has the index by itself, the tar lost.
func TestATarThatIsCutIsTruncated(t *testing.T) {
	layer := erofstest.TarLayer(t, t.TempDir(), "layer.erofs", []erofstest.Entry{erofstest.File("x", strings.Repeat("x", 5000))})
	image := erofstest.Inspect(t, layer)
	for _, size := range []int64{image.End() - 512, image.Super.Bytes()} {
		must(t, os.Truncate(layer, size))
		if _, err := newPlanner(t).Plan(deadline(t), blockMounts("/none", layer)); !errors.Is(err, erofs.ErrTruncated) || !strings.Contains(err.Error(), layer) {
			t.Errorf("%d bytes: %v, want %v with the name", size, err, erofs.ErrTruncated)
		}
	}
}

// TestAProtectedTarIsCoveredToItsEnd has a tree over the index and the tar.
func TestAProtectedTarIsCoveredToItsEnd(t *testing.T) {
	tars := oddLayers(t, t.TempDir(), erofstest.TarLayer)
	mounts := blockMounts(ext4Image(t, 1<<20), tars...)
	protect(t, mounts, 1, 2, 3, 4, 5)
	plan, err := plannerWith(t, nil).Plan(deadline(t), mounts)
	if err != nil {
		t.Fatal(err)
	}
	for i, file := range partitions(t, plan.Disks[1]) {
		if got, want := read(t, file), read(t, tars[i]); string(got) != string(want) {
			t.Errorf("partition of %s has %d bytes, the file %d; or they differ", tars[i], len(got), len(want))
		}
	}
}
