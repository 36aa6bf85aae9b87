package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/disks/fio"
	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/truth/layers"
	"github.com/erofsvm/erofsvm/test/truth/vm"
)

// variant is a way for QEMU to serve disks, by the keys of the configuration that
// differ from the first variant's.
type variant struct {
	name string
	keys map[string]any // of the section hypervisor
}

// defaults is what the others are held against. It names its keys, so that it stays what it
// is when the configuration's defaults change.
const defaults = "virtio-blk, threads, page cache, no iothread"

var variants = []variant{
	{defaults, map[string]any{"block_driver": "virtio-blk", "aio": "threads", "cache": "writeback", "iothreads": 0}},
	{"one iothread for all disks", map[string]any{"iothreads": 1}},
	{"an iothread for each disk", map[string]any{"iothreads": 8}},
	{"io_uring", map[string]any{"aio": "io_uring"}},
	{"no page cache", map[string]any{"cache": "none"}},
	{"no page cache, native", map[string]any{"cache": "none", "aio": "native"}},
	{"virtio-scsi", map[string]any{"block_driver": "virtio-scsi"}},
}

// variantRuns bounds how often each variant has a VM of its own.
const variantRuns = 3

// mixed is what a program does to a file of the writable layer.
var mixed = fio.Pattern{Name: "mixed", Random: true, Block: 4096, Writes: 30}

// mixedFile is preallocated by fio, which is part of what warms up.
var mixedFile = fio.Target{Name: "file", Device: "/mixed", Bytes: 32 << 20}

// mixedImage is the size in bytes of the writable image that holds the file.
const mixedImage = 128 << 20

// variants measures each way to serve disks in a VM of its own, in turn.
func (g *guest) variants(ctx context.Context) error {
	image, err := g.maker.Writable(ctx, "mixed.img", mixedImage, "")
	if err != nil {
		return err
	}
	tables := map[string]*figures.Table{}
	table := func(key, title, unit, chart string) {
		t := g.report.Table(title, unit).Draw(figures.Bars, chart, "")
		for _, v := range variants {
			against := defaults
			if v.name == defaults {
				against = ""
			}
			t.Row(v.name, against)
		}
		tables[key] = t
	}
	for _, d := range g.noisy.disks[1:] { // the plain one is what is written to
		table("sequential "+d.name, "ways to serve a disk: 1 MiB sequentially, "+titles[d.name], "MB/s", "ways-sequential-"+d.name)
		table("random "+d.name, "ways to serve a disk: 4 KiB at random, "+titles[d.name], "IOPS", "ways-random-"+d.name)
	}
	table("mixed file", "ways to serve a disk: 4 KiB at random, 30 % writes, a file of the writable layer", "IOPS", "ways-mixed")
	for run := range min(g.runs, variantRuns) {
		for i := range variants {
			v := variants[i]
			if run%2 == 1 {
				v = variants[len(variants)-1-i]
			}
			begun := time.Now()
			samples, err := g.variant(ctx, v, image)
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			fmt.Printf("%s: %.0f s\n", v.name, time.Since(begun).Seconds())
			for _, s := range samples {
				switch t := tables[s.Pattern+" "+s.Target]; {
				case s.Round == 0: // what warms up
				case s.Pattern == "sequential":
					t.Row(v.name, "").Add(s.BytesPerSecond / 1e6)
				default:
					t.Row(v.name, "").Add(s.PerSecond)
				}
			}
		}
	}
	return nil
}

// variant has a VM of this kind read the disks of layers, and write to a file.
func (g *guest) variant(ctx context.Context, v variant, image string) (samples []fio.Sample, err error) {
	one := *g
	one.vm, err = vm.New(g.tree, func(c harness.ShimConfig) {
		for _, keys := range []map[string]any{variants[0].keys, v.keys} {
			for key, value := range keys {
				c.Set("hypervisor", key, value)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, one.close(ctx)) }()
	for _, mounts := range g.noisy.lists {
		if _, err := one.hold(ctx, mounts); err != nil {
			return nil, err
		}
	}
	mounts := layers.Active(layers.Upper{Image: image}, g.fioLowers...)
	samples, err = one.readDisks(ctx, mounts, g.noisy.disks[1:], often+1)
	if err != nil {
		return nil, err
	}
	wrote, err := one.fioRun(ctx, mounts, "", []fio.Target{mixedFile}, []fio.Pattern{mixed}, often+1)
	return append(samples, wrote...), err
}
