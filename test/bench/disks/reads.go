package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/test/bench/disks/fio"
	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/truth/layers"
	"github.com/erofsvm/erofsvm/test/truth/vm"
)

const (
	noise    = 128 << 20 // bytes of the file that the large layer holds
	around   = 50        // small layers below, and as many above
	plainImg = 192 << 20 // bytes of the writable image, more than noise
	readTime = 500 * time.Millisecond
)

var patterns = []fio.Pattern{
	{Name: "sequential", Block: 1 << 20},
	{Name: "random", Random: true, Block: 4096},
}

// Names of what is read.
const (
	readPlain       = "plain"
	readRaw         = "raw-layer"
	readMerged      = "merged"
	readPartitioned = "partitioned"
)

// disk is one that a container holds, and the part of it that is read.
type disk struct {
	name   string
	bytes  int64 // of the whole
	offset int64
	layout rootfs.Disk // of a disk of layers
}

// reads measures reads of the disks that three containers hold, and then what
// package walks measures beside them.
func (g *guest) reads(ctx context.Context) (err error) {
	image, raw, merged, partitioned, err := g.noiseLists(ctx)
	if err != nil {
		return err
	}
	disks, err := g.noiseDisks(ctx, image, raw, merged, partitioned)
	if err != nil {
		return err
	}
	g.noisy = noisy{lists: [][]rootfs.Mount{raw, merged, partitioned}, disks: disks}
	if err := g.blockLayer(ctx, disks); err != nil {
		return err
	}
	var held []*vm.Container
	defer func() { err = errors.Join(err, release(ctx, held...)) }()
	for _, mounts := range g.noisy.lists {
		c, err := g.hold(ctx, mounts)
		if err != nil {
			return err
		}
		held = append(held, c)
	}
	if err := g.fio(ctx, disks); err != nil {
		return err
	}
	if err := release(ctx, held[1:]...); err != nil {
		return err
	}
	held = held[:1] // keeps the VM
	return g.walks(ctx)
}

// noiseLists are mounts of a large layer: alone, below a writable image; amid
// small ones that can be merged; and amid ones that cannot.
func (g *guest) noiseLists(ctx context.Context) (image string, raw, merged, partitioned []rootfs.Mount, err error) {
	content := make([]byte, noise)
	rand.NewChaCha8([32]byte{2}).Read(content)
	tars := make([][]byte, 0, 2*around+1)
	for i := range cap(tars) {
		files := map[string][]byte{fmt.Sprintf("small/%d", i): content[i<<13 : (i+1)<<13]}
		if i == around {
			files = map[string][]byte{"noise": content, inGuestName: g.program}
		}
		tar, err := layers.Files(files)
		if err != nil {
			return "", nil, nil, nil, err
		}
		tars = append(tars, tar)
	}
	paths, err := g.plain(ctx, "noise", tars)
	if err != nil {
		return "", nil, nil, nil, err
	}
	sparse, err := g.maker.Writable(ctx, "plain.img", plainImg, "")
	if err != nil {
		return "", nil, nil, nil, err
	}
	if image, err = g.copyOf(sparse, "plain"); err != nil {
		return "", nil, nil, nil, err
	}
	chain := layers.Lowers(paths...)
	apart, err := g.apart(ctx, "noise-index.erofs", chain, 0, tars[0])
	if err != nil {
		return "", nil, nil, nil, err
	}
	return image, layers.Active(layers.Upper{Image: image}, chain[around]), layers.View(chain...), layers.View(apart...), nil
}

// noiseDisks are the disks that the runtime makes of the lists. The part of each
// that is read is the large layer, and as much of the writable image.
func (g *guest) noiseDisks(ctx context.Context, image string, raw, merged, partitioned []rootfs.Mount) ([]disk, error) {
	disks := []disk{{name: readPlain, bytes: plainImg, layout: rootfs.Disk{Driver: rootfs.DriverRaw, Path: image}}}
	for _, l := range []struct {
		name   string
		mounts []rootfs.Mount
		want   rootfs.Strategy
	}{
		{readRaw, raw, rootfs.StrategyRaw}, {readMerged, merged, rootfs.StrategyMerged}, {readPartitioned, partitioned, rootfs.StrategyPartitioned},
	} {
		layout, err := g.layersDisk(ctx, l.mounts, l.want)
		if err != nil {
			return nil, err
		}
		d := disk{name: l.name, bytes: layout.Bytes, layout: layout}
		for _, e := range layout.Extents {
			if e.Sectors*512 >= noise {
				break
			}
			d.offset += e.Sectors * 512
		}
		if d.offset+noise > d.bytes {
			return nil, fmt.Errorf("disk %s has no extent as long as the large layer", d.name)
		}
		disks = append(disks, d)
	}
	return disks, nil
}

// noisy are the lists of layers with the large one, and the disks that are made of them.
type noisy struct {
	lists [][]rootfs.Mount
	disks []disk
}

// fioLayers are those of a container with fio.
func (g *guest) fioLayers(ctx context.Context) ([]layers.Lower, error) {
	archive, err := archiveOf(fioRoot(g.tree))
	if err != nil {
		return nil, err
	}
	paths, err := g.plain(ctx, "fio", [][]byte{g.base, archive})
	return layers.Lowers(paths...), err
}

// readDisks reads disks that the VM has, as a container with fio sees them, in turn.
func (g *guest) readDisks(ctx context.Context, mounts []rootfs.Mount, disks []disk, rounds int) ([]fio.Sample, error) {
	table, err := g.run(ctx, mounts, "/usr/bin/cat", "/proc/partitions")
	if err != nil {
		return nil, err
	}
	var nodes strings.Builder
	targets := make([]fio.Target, len(disks))
	for i, d := range disks {
		major, minor, err := number(table, d.bytes)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.name, err)
		}
		targets[i] = fio.Target{Name: d.name, Device: "/dev/" + d.name, Offset: d.offset, Bytes: noise}
		fmt.Fprintf(&nodes, "mknod %s b %s %s\n", targets[i].Device, major, minor)
	}
	return g.fioRun(ctx, mounts, nodes.String(), targets, patterns, rounds)
}

// fioRun runs fio in a container, after what prepares for it.
func (g *guest) fioRun(ctx context.Context, mounts []rootfs.Mount, prepare string, targets []fio.Target, patterns []fio.Pattern, rounds int) ([]fio.Sample, error) {
	script := fmt.Sprintf("export PATH=/usr/bin:/bin\n%scat >/dev/jobs <<'END'\n%sEND\nexec fio %s\n",
		prepare, fio.Jobs(targets, patterns, rounds, readTime), strings.Join(fio.Args("/dev/jobs", patterns), " "))
	out, err := g.run(ctx, mounts, "/bin/sh", "-euc", script)
	if err != nil {
		return nil, err
	}
	return fio.Parse(out)
}

// fio reads the disks.
func (g *guest) fio(ctx context.Context, disks []disk) error {
	lowers, err := g.fioLayers(ctx)
	if err != nil {
		return err
	}
	g.fioLowers = lowers
	samples, err := g.readDisks(ctx, layers.View(lowers...), disks, often*g.runs+1)
	if err != nil {
		return err
	}
	sequential := g.report.Table("guest reads 1 MiB sequentially, past its page cache", "MB/s").Draw(figures.Bars, "fio-sequential", "")
	random := g.report.Table("guest reads 4 KiB at random, past its page cache", "IOPS").Draw(figures.Bars, "fio-random", "")
	for _, d := range disks {
		sequential.Row(titles[d.name], against(d.name))
		random.Row(titles[d.name], against(d.name))
	}
	for _, s := range samples {
		switch {
		case s.Round == 0: // what warms up
		case s.Pattern == "random":
			random.Row(titles[s.Target], "").Add(s.PerSecond)
		default:
			sequential.Row(titles[s.Target], "").Add(s.BytesPerSecond / 1e6)
		}
	}
	return nil
}

// titles are what the report calls the disks.
var titles = map[string]string{
	readPlain:       "raw file, plain virtio-blk",
	readRaw:         "layer, raw",
	readMerged:      fmt.Sprintf("VMDK, merged amid %d small layers", 2*around),
	readPartitioned: fmt.Sprintf("VMDK, partitioned amid %d small layers", 2*around),
}

func against(name string) string {
	if name == readPlain {
		return ""
	}
	return titles[readPlain]
}

// number finds the one disk of so many bytes in /proc/partitions.
func number(table string, bytes int64) (major, minor string, err error) {
	for line := range strings.Lines(table) {
		words := strings.Fields(line)
		if len(words) != 4 || words[2] != fmt.Sprint(bytes/1024) {
			continue
		}
		if strings.ContainsAny(words[3], "0123456789") { // a partition
			continue
		}
		if major != "" {
			return "", "", fmt.Errorf("two disks have %d bytes", bytes)
		}
		major, minor = words[0], words[1]
	}
	if major == "" {
		return "", "", fmt.Errorf("no disk has %d bytes:\n%s", bytes, table)
	}
	return major, minor, nil
}
