package rootfs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/merge"
	"github.com/erofsvm/erofsvm/rootfs/verity"
)

// plannerWith is newPlanner with options changed.
func plannerWith(t testing.TB, change func(*rootfs.Options)) *rootfs.Planner {
	o := rootfs.Options{
		CacheDir: filepath.Join(t.TempDir(), "cache"), MkfsErofs: erofstest.Mkfs(t), Partitions: true,
	}
	if change != nil {
		change(&o)
	}
	return rootfs.NewPlanner(o)
}

// mixedLayers are three layers that mkfs.erofs merges into garbage: they have
// blocks of different sizes. The oldest is the first.
func mixedLayers(t testing.TB, dir string) []string {
	layers := chain(t, dir, 3)
	layers[1] = erofstest.LayerWith(t, dir, "small-blocks.erofs", []erofstest.Entry{
		erofstest.Dir("d"), erofstest.File("d/small", strings.Repeat("small", 999)), erofstest.File("d/.wh.own-0", ""),
	}, "--tar=f", "-Enoinline_data", "-b512")
	return layers
}

// partitions are files with what the partitions of the disk hold, as QEMU reads
// it, the oldest layer first; each also as partx finds it.
func partitions(t *testing.T, disk rootfs.Disk) []string {
	t.Helper()
	raw := qemuReads(t, disk)
	data := read(t, raw)
	if int64(len(data)) != disk.Bytes {
		t.Fatalf("QEMU reads %d bytes, the plan says %d", len(data), disk.Bytes)
	}
	var want strings.Builder
	var files []string
	for i, p := range disk.Partitions {
		fmt.Fprintf(&want, "%d %d %d\n", i+1, p.Start, p.Sectors)
		file := filepath.Join(filepath.Dir(raw), fmt.Sprintf("p%d", p.Number))
		write(t, file, data[p.Start*512:][:p.Sectors*512])
		files = append(files, file)
		clear(data[p.Start*512:][:p.Sectors*512])
	}
	if partx, err := exec.LookPath("partx"); err == nil {
		out, err := exec.Command(partx, "--raw", "--noheadings", "--output", "NR,START,SECTORS", raw).CombinedOutput()
		if err != nil || string(out) != want.String() {
			t.Errorf("%v, partx finds\n%s\nwant\n%s", err, out, want.String())
		}
	}
	primary, backup := 34*512, 33*512
	if !bytes.Equal(data[primary:len(data)-backup], make([]byte, len(data)-primary-backup)) {
		t.Error("there is something else than zeros between the partitions")
	}
	slices.Reverse(files)
	return files
}

func TestWhatCannotBeMergedGetsPartitions(t *testing.T) {
	dir := t.TempDir()
	compressed := chain(t, dir, 2)
	compressed[0] = erofstest.Layer(t, dir, "compressed.erofs", []erofstest.Entry{
		erofstest.File("text", strings.Repeat("again and ", 9999)),
	}, "-zlz4")
	for name, c := range map[string]struct {
		layers []string
		change func(*rootfs.Options)
		reason string
	}{
		"blocks of different sizes": {mixedLayers(t, dir), nil, "of 512"},
		"compressed":                {compressed, nil, "erofs"},
		"no mkfs.erofs":             {chain(t, dir, 2), func(o *rootfs.Options) { o.MkfsErofs = "/nonexistent/mkfs.erofs" }, "/nonexistent/mkfs.erofs"},
		"told to":                   {chain(t, dir, 2), func(o *rootfs.Options) { o.Layers = rootfs.LayersPartition }, "configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			upper := ext4Image(t, 1<<20)
			plan, err := plannerWith(t, c.change).Plan(deadline(t), blockMounts(upper, c.layers...))
			if err != nil {
				t.Fatal(err)
			}
			if plan.Strategy != rootfs.StrategyPartitioned || !strings.Contains(plan.Reason, c.reason) || strings.Contains(plan.Reason, "\n") {
				t.Errorf("strategy %s because %q, want partitioned for %q", plan.Strategy, plan.Reason, c.reason)
			}
			checkPartitions(t, plan, c.layers)

			_, err = plannerWith(t, func(o *rootfs.Options) { o.Partitions = false; change(c.change, o) }).Plan(deadline(t), blockMounts(upper, c.layers...))
			if err == nil {
				t.Error("planned though the guest has no partitions")
			}
		})
	}
}

func change(f func(*rootfs.Options), o *rootfs.Options) {
	if f != nil {
		f(o)
	}
}

// checkPartitions wants a partition and a storage per layer, the topmost first.
// Layers are given oldest first.
func checkPartitions(t *testing.T, plan *rootfs.Plan, layers []string) {
	t.Helper()
	disk, n := plan.Disks[1], len(layers)
	if len(disk.Partitions) != n || len(plan.Storages) != 1+n {
		t.Fatalf("%d partitions and %d storages, want %d and %d", len(disk.Partitions), len(plan.Storages), n, 1+n)
	}
	for i, p := range disk.Partitions {
		if p.Number != i+1 || p.Path != layers[n-1-i] || p.Start%2048 != 0 {
			t.Errorf("partition %+v, want number %d, %s", p, i+1, layers[n-1-i])
		}
		s := plan.Storages[1+i]
		want := []string{"ro", "X-kata.overlay-lower", "X-kata.multi-layer=true", "X-kata.gpt-partitioned=true", fmt.Sprintf("X-kata.partition-number=%d", i+1)}
		if s.Disk != 1 || s.FSType != "erofs" || !slices.Equal(s.Options, want) {
			t.Errorf("storage %+v, want %q of disk 1", s, want)
		}
	}
	bytes := int64(0)
	for _, e := range disk.Extents {
		bytes += e.Sectors * 512
		if e.Path == "" && (e.Offset+e.Sectors)*512 > disk.Generated.Size {
			t.Errorf("extent %+v passes the end of the generated file, %d bytes", e, disk.Generated.Size)
		}
	}
	if bytes != disk.Bytes {
		t.Errorf("extents of %d bytes, the disk has %d", bytes, disk.Bytes)
	}
}

func TestTheStrategyOfTheConfigurationIsKeptTo(t *testing.T) {
	dir := t.TempDir()
	upper, mixed, plain := ext4Image(t, 1<<20), mixedLayers(t, dir), chain(t, dir, 2)
	for _, c := range []struct {
		layers     rootfs.Layers
		partitions bool
		files      []string
		want       rootfs.Strategy
		err        error
	}{
		{"", true, plain, rootfs.StrategyMerged, nil},
		{rootfs.LayersAuto, true, plain[:1], rootfs.StrategyRaw, nil},
		{rootfs.LayersAuto, true, mixed, rootfs.StrategyPartitioned, nil},
		{rootfs.LayersAuto, false, mixed, "", merge.ErrIneligible},
		{rootfs.LayersMerge, true, plain, rootfs.StrategyMerged, nil},
		{rootfs.LayersMerge, true, mixed, "", merge.ErrIneligible},
		{rootfs.LayersPartition, true, plain[:1], rootfs.StrategyRaw, nil},
		{rootfs.LayersPartition, true, plain, rootfs.StrategyPartitioned, nil},
		{rootfs.LayersPartition, false, plain, "", errdefs.ErrNotImplemented},
		{"nothing", true, plain, "", errdefs.ErrInvalidArgument},
	} {
		t.Run(fmt.Sprintf("%s %t %d", c.layers, c.partitions, len(c.files)), func(t *testing.T) {
			planner := plannerWith(t, func(o *rootfs.Options) { o.Layers, o.Partitions = c.layers, c.partitions })
			plan, err := planner.Plan(deadline(t), blockMounts(upper, c.files...))
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if err == nil && plan.Strategy != c.want {
				t.Errorf("strategy %s, want %s", plan.Strategy, c.want)
			}
		})
	}
}

// TestACallGivenUpIsNoReasonForPartitions has a deadline that has passed.
func TestACallGivenUpIsNoReasonForPartitions(t *testing.T) {
	layers := chain(t, t.TempDir(), 2)
	ctx, cancel := context.WithCancel(deadline(t))
	cancel()
	plan, err := plannerWith(t, nil).Plan(ctx, blockMounts(ext4Image(t, 1<<20), layers...))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v, want %v", plan, err, context.Canceled)
	}
}

// TestPartitionsAreSeenAsTheLayers mounts each partition of what QEMU reads,
// under an overlay, beside the layers.
func TestPartitionsAreSeenAsTheLayers(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	odd := oddLayers(t, dir, plain)
	upper := ext4Image(t, 1<<20)
	index := filepath.Join(dir, "index.erofs")
	makeIndex(t, index, odd[:3])
	above := blockMounts(upper, odd[2:]...)
	above[len(above)-2] = indexMounts(upper, index, odd[:3]...)[1]

	// In an index there is nothing left of what deletes files below it.
	upperIndex := filepath.Join(dir, "upper-index.erofs")
	makeIndex(t, upperIndex, odd[1:4])
	middle := blockMounts(upper, odd[0], upperIndex, odd[4])
	middle[2] = indexMounts(upper, upperIndex, odd[1:4]...)[1]

	for name, c := range map[string]struct {
		mounts []rootfs.Mount
		layers []string
		number int // of partitions
	}{
		"plain layers":              {blockMounts(upper, odd...), odd, 5},
		"layers above an index":     {above, odd, 3},
		"an index in the middle":    {middle, odd, 5},
		"blocks of different sizes": {blockMounts(upper, mixedLayers(t, dir)...), mixedLayers(t, dir), 3},
	} {
		t.Run(name, func(t *testing.T) {
			planner := plannerWith(t, func(o *rootfs.Options) { o.Layers = rootfs.LayersPartition })
			plan, err := planner.Plan(deadline(t), c.mounts)
			if err != nil {
				t.Fatal(err)
			}
			files := partitions(t, plan.Disks[1])
			if len(files) != c.number {
				t.Errorf("%d partitions, want %d", len(files), c.number)
			}
			union := trees(t, c.layers, files)
			if !slices.Equal(union[1], union[0]) {
				t.Errorf("partitions:\n%s\nlayers:\n%s", strings.Join(union[1], "\n"), strings.Join(union[0], "\n"))
			}
		})
	}
}

// TestTheSameLayersMakeTheSameDisk is for who compares two plans, or has a
// guest measured.
func TestTheSameLayersMakeTheSameDisk(t *testing.T) {
	mounts := blockMounts(ext4Image(t, 1<<20), mixedLayers(t, t.TempDir())...)
	var first *rootfs.Plan
	for range 2 {
		plan, err := plannerWith(t, nil).Plan(deadline(t), mounts)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = plan
			continue
		}
		a, errA := json.Marshal(first)
		b, errB := json.Marshal(plan)
		if errA != nil || errB != nil || !bytes.Equal(a, b) || !bytes.Equal(first.Disks[1].Generated.Data, plan.Disks[1].Generated.Data) {
			t.Errorf("%s\nand then\n%s", a, b)
		}
	}
}

func TestMoreLayersThanPartitionsAreRefused(t *testing.T) {
	one := chain(t, t.TempDir(), 1)[0]
	layers := slices.Repeat([]string{one}, 256)
	_, err := plannerWith(t, func(o *rootfs.Options) { o.Layers = rootfs.LayersPartition }).Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), layers...))
	if err == nil || !strings.Contains(err.Error(), "1 to 255") {
		t.Errorf("%v, want the bound", err)
	}
}

// protect puts a hash tree behind the layer of each given mount and tells the
// mount of it.
func protect(t *testing.T, mounts []rootfs.Mount, which ...int) {
	for _, i := range which {
		mounts[i].Options = append(mounts[i].Options, "X-containerd.dmverity="+erofstest.Protect(t, mounts[i].Source))
	}
}

// TestProtectedLayersKeepTheirTrees wants each partition with a protected layer
// to be its whole file, tree and all, and the others to end where they end.
func TestProtectedLayersKeepTheirTrees(t *testing.T) {
	for name, c := range map[string]struct {
		layers int
		which  []int // mounts; 1 is the topmost layer
	}{
		"one layer":        {1, []int{1}},
		"all of three":     {3, []int{1, 2, 3}},
		"the lowest alone": {3, []int{3}},
	} {
		t.Run(name, func(t *testing.T) {
			layers := chain(t, t.TempDir(), c.layers)
			mounts := blockMounts(ext4Image(t, 1<<20), layers...)
			protect(t, mounts, c.which...)
			plan, err := plannerWith(t, nil).Plan(deadline(t), mounts)
			if err != nil {
				t.Fatal(err)
			}
			if plan.Strategy != rootfs.StrategyPartitioned || !strings.Contains(plan.Reason, "dm-verity") {
				t.Errorf("strategy %s because %q", plan.Strategy, plan.Reason)
			}
			files := partitions(t, plan.Disks[1]) // oldest first
			for i := range layers {
				number := c.layers - i
				want, options := read(t, layers[i]), plan.Storages[number].Options
				if !slices.Contains(c.which, number) {
					if slices.ContainsFunc(options, func(o string) bool { return strings.Contains(o, "verity") }) {
						t.Errorf("%q of a layer without a tree", options)
					}
				} else if metadata := read(t, layers[i]+".dmverity"); !slices.Contains(options, "X-kata.dmverity-enabled=true") ||
					!slices.ContainsFunc(options, named(metadata, "X-kata.dmverity.roothash=", `"roothash": "`)) ||
					!slices.ContainsFunc(options, named(metadata, "X-kata.dmverity.hashoffset=", `"hashoffset": `)) {
					t.Errorf("%q beside %s", options, metadata)
				}
				if !bytes.Equal(read(t, files[i]), want) {
					t.Errorf("partition %d is not %s, byte for byte", number, layers[i])
				}
			}
		})
	}
}

// named says whether an option with the given start has the value that the
// metadata has behind key.
func named(metadata []byte, start, key string) func(string) bool {
	return func(o string) bool {
		value, ok := strings.CutPrefix(o, start)
		return ok && bytes.Contains(metadata, []byte(key+value))
	}
}

func TestABrokenTreeIsRefusedByName(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(layer string) error
		want  error
	}{
		"no metadata": {func(l string) error { return os.Remove(l + ".dmverity") }, os.ErrNotExist},
		"garbage":     {func(l string) error { return os.WriteFile(l+".dmverity", []byte("?"), 0o600) }, verity.ErrMetadata},
		"tree cut":    {func(l string) error { return os.Truncate(l, int64(len(read(t, l))-512)) }, verity.ErrTree},
		"another layer": {func(l string) error {
			return os.WriteFile(l+".dmverity", []byte(`{"roothash":"`+strings.Repeat("0", 64)+`","hashoffset":4096}`), 0o600)
		}, verity.ErrTree},
	} {
		t.Run(name, func(t *testing.T) {
			layers := chain(t, t.TempDir(), 2)
			mounts := blockMounts(ext4Image(t, 1<<20), layers...)
			protect(t, mounts, 1, 2)
			must(t, c.fault(layers[0]))
			_, err := plannerWith(t, nil).Plan(deadline(t), mounts)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), layers[0]) {
				t.Errorf("%v, want %v with the name %s", err, c.want, layers[0])
			}
		})
	}
}
