package truth

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/tree"
	"github.com/erofsvm/erofsvm/test/truth/layers"
)

// row is an image in one shape.
type row struct {
	name string
	// strategy that the plan must choose.
	strategy rootfs.Strategy
	// lowers of the image, oldest first, which together are the lowest n
	// layers of the chain.
	n      int
	lowers func(*testing.T, *chain) []layers.Lower
	upper  upper
}

// upper is where the writable layer of a row is.
type upper int

const (
	used   upper = iota // an image that has been written to before
	fresh               // an image with nothing in it
	absent              // an image that is still to be made
	memory              // none, but directories of the host
	none                // none: a read-only view
)

// mergedRoot says that the root is that of a merged filesystem, whose mode is
// not that of the layers; the plan warns of it.
func (r row) mergedRoot() bool { return r.upper == none && r.strategy == rootfs.StrategyMerged }

// plainLayers are the lowest n layers.
func plainLayers(n int) func(*testing.T, *chain) []layers.Lower {
	return func(_ *testing.T, c *chain) []layers.Lower { return layers.Lowers(c.plain[:n]...) }
}

func tarIndexes(n int) func(*testing.T, *chain) []layers.Lower {
	return func(_ *testing.T, c *chain) []layers.Lower { return layers.Lowers(c.tarIndex[:n]...) }
}

// indexed are layers of which those from first on, up to the one before end, came
// with an index.
func indexed(of func(*chain) []string, first, end, n int) func(*testing.T, *chain) []layers.Lower {
	return func(t *testing.T, c *chain) []layers.Lower {
		t.Helper()
		all := of(c)
		name := filepath.Join("..", filepath.Base(t.TempDir())+"-fsmeta.erofs")
		meta, err := c.maker.Index(within(t, step), name, all[first:end]...)
		if err != nil {
			t.Fatal(err)
		}
		lowers := layers.Lowers(all[:first]...)
		lowers = append(lowers, layers.Lower{Path: meta, Devices: all[first:end]})
		return append(lowers, layers.Lowers(all[end:n]...)...)
	}
}

func ofPlain(c *chain) []string    { return c.plain }
func ofTarIndex(c *chain) []string { return c.tarIndex }

// emptyLayers are n layers without anything in them.
func emptyLayers(n int) func(*testing.T, *chain) []layers.Lower {
	return func(t *testing.T, c *chain) []layers.Lower {
		t.Helper()
		path, err := c.maker.Plain(within(t, step), "empty.erofs", layers.Empty())
		if err != nil {
			t.Fatal(err)
		}
		copies := make([]string, n)
		for i := range copies {
			copies[i] = path
		}
		return layers.Lowers(copies...)
	}
}

func noLayers(*testing.T, *chain) []layers.Lower { return nil }

// byRule are the rows whose strategy nobody has to ask for.
var byRule = []row{
	{"no layers", rootfs.StrategyRaw, 0, noLayers, used},
	{"an empty layer", rootfs.StrategyRaw, 0, emptyLayers(1), used},
	{"one layer", rootfs.StrategyRaw, 1, plainLayers(1), used},
	{"one layer, fresh image", rootfs.StrategyRaw, 1, plainLayers(1), fresh},
	{"one layer, read-only", rootfs.StrategyRaw, 1, plainLayers(1), none},
	{"one layer, no image yet", rootfs.StrategyRaw, 1, plainLayers(1), absent},
	{"one layer, in guest memory", rootfs.StrategyRaw, 1, plainLayers(1), memory},
	{"3 empty layers", rootfs.StrategyMerged, 0, emptyLayers(3), used},
	{"one tar index", rootfs.StrategyRaw, 1, tarIndexes(1), used},
	{"2 layers", rootfs.StrategyMerged, 2, plainLayers(2), used},
	{"2 layers, read-only", rootfs.StrategyMerged, 2, plainLayers(2), none},
	{"30 layers", rootfs.StrategyMerged, 30, plainLayers(30), used},
	{"100 layers", rootfs.StrategyMerged, 100, plainLayers(100), used},
	{"2 tar indexes", rootfs.StrategyMerged, 2, tarIndexes(2), used},
	{"30 tar indexes", rootfs.StrategyMerged, 30, tarIndexes(30), used},
	{"100 tar indexes", rootfs.StrategyMerged, 100, tarIndexes(100), used},
	{"an index of 2 layers", rootfs.StrategyMerged, 2, indexed(ofPlain, 0, 2, 2), used},
	{"an index of 100 layers", rootfs.StrategyMerged, 100, indexed(ofPlain, 0, 100, 100), used},
	{"an index of 30 tar indexes", rootfs.StrategyMerged, 30, indexed(ofTarIndex, 0, 30, 30), used},
	{"a layer above an index of 2", rootfs.StrategyMerged, 3, indexed(ofPlain, 0, 2, 3), used},
	{"10 layers above an index of 20", rootfs.StrategyMerged, 30, indexed(ofPlain, 0, 20, 30), used},
	{"50 layers above an index of 50", rootfs.StrategyMerged, 100, indexed(ofPlain, 0, 50, 100), used},
	{"an index of 10 amid 30 layers", rootfs.StrategyMerged, 30, indexed(ofPlain, 10, 20, 30), used},
}

// protectedLayers are the lowest n layers, each with dm-verity.
func protectedLayers(n int) func(*testing.T, *chain) []layers.Lower {
	return func(_ *testing.T, c *chain) []layers.Lower { return c.protected[:n] }
}

// mixed are n layers of which each is of another kind than the one below.
func mixed(n int) func(*testing.T, *chain) []layers.Lower {
	return func(_ *testing.T, c *chain) []layers.Lower {
		all := make([]layers.Lower, n)
		for i := range all {
			switch i % 3 {
			case 0:
				all[i] = layers.Lower{Path: c.plain[i]}
			case 1:
				all[i] = layers.Lower{Path: c.tarIndex[i]}
			default:
				all[i] = c.protected[i]
			}
		}
		return all
	}
}

// plainAndTar are n layers, every other one an index of a tar.
func plainAndTar(n int) func(*testing.T, *chain) []layers.Lower {
	return func(_ *testing.T, c *chain) []layers.Lower {
		all := layers.Lowers(c.plain[:n]...)
		for i := 1; i < n; i += 2 {
			all[i].Path = c.tarIndex[i]
		}
		return all
	}
}

// separately are the rows whose layers cannot be merged.
var separately = []row{
	{"one protected layer", rootfs.StrategyPartitioned, 1, protectedLayers(1), used},
	{"one protected layer, read-only", rootfs.StrategyPartitioned, 1, protectedLayers(1), none},
	{"2 protected layers", rootfs.StrategyPartitioned, 2, protectedLayers(2), used},
	{"2 protected layers, read-only", rootfs.StrategyPartitioned, 2, protectedLayers(2), none},
	{"30 protected layers", rootfs.StrategyPartitioned, 30, protectedLayers(30), used},
	{"100 protected layers", rootfs.StrategyPartitioned, 100, protectedLayers(100), used},
	{"3 layers of 3 kinds", rootfs.StrategyPartitioned, 3, mixed(3), used},
	{"30 layers of 3 kinds", rootfs.StrategyPartitioned, 30, mixed(30), used},
	{"30 layers, plain and tar indexes", rootfs.StrategyPartitioned, 30, plainAndTar(30), used},
	{"100 layers, plain and tar indexes", rootfs.StrategyPartitioned, 100, plainAndTar(100), used},
}

// partitioned are rows for a runtime that is told to merge nothing.
var partitioned = []row{
	{"one layer", rootfs.StrategyRaw, 1, plainLayers(1), used},
	{"2 layers", rootfs.StrategyPartitioned, 2, plainLayers(2), used},
	{"2 layers, read-only", rootfs.StrategyPartitioned, 2, plainLayers(2), none},
	{"2 layers, fresh image", rootfs.StrategyPartitioned, 2, plainLayers(2), fresh},
	{"2 layers, no image yet", rootfs.StrategyPartitioned, 2, plainLayers(2), absent},
	{"2 layers, in guest memory", rootfs.StrategyPartitioned, 2, plainLayers(2), memory},
	{"30 layers", rootfs.StrategyPartitioned, 30, plainLayers(30), used},
	{"100 layers", rootfs.StrategyPartitioned, 100, plainLayers(100), used},
	{"128 layers", rootfs.StrategyPartitioned, deepest, plainLayers(deepest), used},
	{"30 layers, read-only", rootfs.StrategyPartitioned, 30, plainLayers(30), none},
	{"3 empty layers", rootfs.StrategyPartitioned, 0, emptyLayers(3), used},
	{"30 tar indexes", rootfs.StrategyPartitioned, 30, tarIndexes(30), used},
	{"an index of 30 layers", rootfs.StrategyMerged, 30, indexed(ofPlain, 0, 30, 30), used},
	{"10 layers above an index of 20", rootfs.StrategyPartitioned, 30, indexed(ofPlain, 0, 20, 30), used},
	{"an index of 10 amid 30 layers", rootfs.StrategyPartitioned, 30, indexed(ofPlain, 10, 20, 30), used},
	{"10 tar indexes above an index of 20", rootfs.StrategyPartitioned, 30, indexed(ofTarIndex, 0, 20, 30), used},
}

// few are rows of each strategy, for what has nothing to do with the strategy.
var few = []row{
	{"one layer", rootfs.StrategyRaw, 1, plainLayers(1), used},
	{"30 layers", rootfs.StrategyMerged, 30, plainLayers(30), used},
	{"2 layers, read-only", rootfs.StrategyMerged, 2, plainLayers(2), none},
	{"2 layers, no image yet", rootfs.StrategyMerged, 2, plainLayers(2), absent},
	{"30 layers of 3 kinds", rootfs.StrategyPartitioned, 30, mixed(30), used},
}

// TestTheContainerSeesItsLayers runs the rows whose strategy the plan chooses.
func TestTheContainerSeesItsLayers(t *testing.T) {
	m := startMachine(t, nil)
	m.rows(t, slices.Concat(byRule, separately))
}

// TestADirectoryThatWasReplacedDoesNotComeBack: mkfs.erofs would merge these
// layers into one with files that an overlay does not show.
func TestADirectoryThatWasReplacedDoesNotComeBack(t *testing.T) {
	revived, err := made.revived()
	if err != nil {
		t.Fatal(err)
	}
	m := startMachine(t, nil)
	m = &machine{VM: m.VM, chain: revived}
	m.rows(t, []row{
		{"3 layers", rootfs.StrategyPartitioned, 3, plainLayers(3), used},
		{"3 layers, read-only", rootfs.StrategyPartitioned, 3, plainLayers(3), none},
		{"the two below", rootfs.StrategyMerged, 2, plainLayers(2), used},
	})
}

// TestTheContainerSeesItsPartitions runs rows with merging switched off.
func TestTheContainerSeesItsPartitions(t *testing.T) {
	m := startMachine(t, func(c harness.ShimConfig) { c.Set("rootfs", "layers", "partition") })
	m.rows(t, partitioned)
}

// TestTheContainerSeesItsLayersOnSCSI runs rows with the other kind of disk.
func TestTheContainerSeesItsLayersOnSCSI(t *testing.T) {
	m := startMachine(t, func(c harness.ShimConfig) { c.Set("hypervisor", "block_driver", "virtio-scsi") })
	m.rows(t, few)
}

// TestTheContainerSeesItsLayersByPath runs rows with QEMU opening the files by
// their names.
func TestTheContainerSeesItsLayersByPath(t *testing.T) {
	m := startMachine(t, func(c harness.ShimConfig) { c.Set("debug", "plain_paths", true) })
	m.rows(t, few)
}

// rows runs every row in the machine, and tells which took longest. The machine
// has no more devices after it than before, and QEMU no more files open.
func (m *machine) rows(t *testing.T, rows []row) {
	t.Helper()
	devices, files := m.devices(t), len(m.openFiles(t, made.dir))
	took := make(map[string]time.Duration)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			begun := time.Now()
			m.check(t, r)
			took[r.name] = time.Since(begun)
		})
	}
	names := make([]string, 0, len(took))
	for name := range took {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return int(took[b] - took[a]) })
	for _, name := range names[:min(5, len(names))] {
		t.Logf("slow: %5.1f s  %s", took[name].Seconds(), name)
	}
	if after := m.devices(t); !slices.Equal(devices, after) {
		t.Errorf("block devices before:\n%s\nand after:\n%s", strings.Join(devices, "\n"), strings.Join(after, "\n"))
	}
	if after := m.openFiles(t, made.dir); len(after) != files {
		t.Errorf("QEMU had %d of the layers' files open, and has %d after all containers are gone: %q", files, len(after), after)
	}
}

// devices are the block devices in a guest with one container besides the one
// that keeps it.
func (m *machine) devices(t *testing.T) []string {
	t.Helper()
	out := m.run(t, layers.Active(layers.Upper{Image: m.image(t)}, layers.Lowers(m.chain.plain[0])...), "devices")
	// Names go to whoever comes first.
	var sizes []string
	for line := range strings.Lines(out) {
		_, size, _ := strings.Cut(strings.TrimSpace(line), " ")
		sizes = append(sizes, size)
	}
	slices.Sort(sizes)
	return sizes
}

// check runs a container and compares what it sees with the reference.
func (m *machine) check(t *testing.T, r row) {
	t.Helper()
	lowers := r.lowers(t, m.chain)
	mounts := layers.View(lowers...)
	skip := []string{"dev", "proc"}
	if r.upper != none {
		mounts = layers.Active(m.upper(t, r.upper), lowers...)
	}
	if r.upper == used {
		skip = append(skip, inGuest)
	}
	args := []string{"list"}
	for _, s := range skip {
		args = append(args, "-skip", s)
	}
	got := comparable(m.run(t, mounts, append(args, "/")...), r.mergedRoot())
	if strategy := m.strategy(); strategy != string(r.strategy) {
		t.Errorf("strategy %s, want %s", strategy, r.strategy)
	}
	if diff := tree.Diff([]byte(m.reference(t, r, skip)), []byte(got), 30); diff != nil {
		t.Errorf("in the guest (+) and as overlayfs has it (-):\n%s", strings.Join(diff, "\n"))
	}
}

// upper makes the writable layer.
func (m *machine) upper(t *testing.T, kind upper) layers.Upper {
	t.Helper()
	dir := t.TempDir()
	switch kind {
	case fresh:
		maker := m.chain.maker
		maker.Dir = dir
		path, err := maker.Writable(within(t, step), "rwlayer.img", 16<<20, "")
		if err != nil {
			t.Fatal(err)
		}
		return layers.Upper{Image: path}
	case absent:
		return layers.Upper{Image: filepath.Join(dir, "rwlayer.img"), Mkfs: []string{"X-containerd.mkfs.fs=ext4", fmt.Sprintf("X-containerd.mkfs.size=%d", 64<<20)}}
	case memory:
		return layers.Upper{HostDir: dir}
	}
	return layers.Upper{Image: m.image(t)}
}

// reference lists what the host's overlayfs shows of the row.
func (m *machine) reference(t *testing.T, r row, skip []string) string {
	t.Helper()
	var listing bytes.Buffer
	see := func(root string) error {
		_, err := tree.List(&listing, root, tree.Options{ModTime: true, OneFilesystem: true, Skip: skip})
		return err
	}
	show := func(ctx context.Context) error { return m.chain.reference.Active(ctx, r.n, see) }
	if r.upper == none {
		show = func(ctx context.Context) error { return m.chain.reference.View(ctx, r.n, see) }
	}
	if err := show(within(t, step)); err != nil {
		t.Fatalf("reference: %v", err)
	}
	return comparable(listing.String(), r.mergedRoot())
}

// comparable takes the time out of the first line, which is that of the root: the
// snapshotter or the guest has just made it. all takes out the rest too.
func comparable(listing string, all bool) string {
	first, rest, _ := strings.Cut(listing, "\n")
	first, _, _ = strings.Cut(first, " mtime ")
	if all {
		first = ""
	}
	return first + "\n" + rest
}
