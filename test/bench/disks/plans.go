package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/gpt"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/truth/layers"
)

// layerCounts of the images that are planned.
var layerCounts = [...]int{1, 10, 100, 500}

const (
	// sampleTime is how long plans are made for one sample, which is their mean.
	sampleTime = 30 * time.Millisecond
	// plansForMemory are made once, and then nine times more.
	plansForMemory = 100
)

// plans measures how long a plan with its descriptor takes, and what an index
// costs that is not in the cache.
func (b *bench) plans(ctx context.Context) error {
	tars, err := layers.Layers(layerCounts[len(layerCounts)-1], nil)
	if err != nil {
		return err
	}
	paths, err := b.plain(ctx, "plan", tars)
	if err != nil {
		return err
	}
	image, err := b.maker.Writable(ctx, "plan.img", 16<<20, "")
	if err != nil {
		return err
	}
	var images []planned
	for _, n := range layerCounts {
		images = append(images, planned{n, layers.Active(layers.Upper{Image: image}, layers.Lowers(paths[:n]...)...)})
	}
	if err := b.cachedPlans(ctx, images); err != nil {
		return err
	}
	return b.indexes(ctx, images)
}

// planned is an image of n layers.
type planned struct {
	n      int
	mounts []rootfs.Mount
}

func (p planned) String() string { return count(p.n, "layer") }

// cachedPlans are those of every start but the first.
func (b *bench) cachedPlans(ctx context.Context, images []planned) error {
	t := b.report.Table("plan and descriptor, superblocks and index cached", "ms", "ms per 100 layers", "allocations", "KiB allocated").
		Draw(figures.Lines, "plan", "layers")
	cache := filepath.Join(b.dir, "cache")
	auto := b.planner(cache, func(o *rootfs.Options) { o.Lend = true })
	apart := b.planner(cache, func(o *rootfs.Options) { o.Lend, o.Layers = true, rootfs.LayersPartition })
	for round := range often*b.runs + 1 { // the first fills the caches
		for _, i := range images {
			merged, partitioned := i.String()+", merged", i.String()+", partitioned"
			if i.n == 1 {
				merged = i.String() + ", raw"
			}
			if err := sample(ctx, t, merged, "", auto, i, round > 0); err != nil {
				return err
			}
			t.Row(merged, "").At("merged", float64(i.n))
			if i.n == 1 {
				continue
			}
			err := sample(ctx, t, partitioned, merged, apart, i, round > 0)
			if errors.Is(err, gpt.ErrLayout) { // more than a disk can have
				if round == 0 {
					t.Note("%s: refused: %v", partitioned, err)
				}
				continue
			}
			if err != nil {
				return err
			}
			t.Row(partitioned, merged).At("partitioned", float64(i.n))
		}
	}
	return b.flatMemory(ctx, t, auto, images[len(images)-1])
}

// sample makes plans for a while and adds what one of them took to the row.
func sample(ctx context.Context, t *figures.Table, name, against string, p *rootfs.Planner, i planned, counts bool) error {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begun, n := time.Now(), 0
	for ; n == 0 || time.Since(begun) < sampleTime; n++ {
		if err := plan(ctx, p, i.mounts); err != nil {
			return err
		}
	}
	took := milliseconds(time.Since(begun)) / float64(n)
	runtime.ReadMemStats(&after)
	if !counts {
		return nil
	}
	r := t.Row(name, against)
	r.Add(took)
	_, median, _, _ := figures.Spread(r.Samples)
	r.More = []string{
		fmt.Sprintf("%.2f", median*100/float64(i.n)),
		strconv.FormatUint((after.Mallocs-before.Mallocs)/uint64(n), 10),
		strconv.FormatUint((after.TotalAlloc-before.TotalAlloc)/uint64(n)/1024, 10),
	}
	return nil
}

// plan makes a plan and the descriptors of its disks.
func plan(ctx context.Context, p *rootfs.Planner, mounts []rootfs.Mount) error {
	made, err := p.Plan(ctx, mounts)
	if err != nil {
		return err
	}
	for _, d := range made.Disks {
		if d.Driver == rootfs.DriverVMDK {
			if _, err := vmdk.Descriptor(vmdk.Resolve(d.Extents, "/generated")); err != nil {
				return errors.Join(err, made.Close())
			}
		}
	}
	return made.Close()
}

// flatMemory says what many plans leave behind in memory.
func (b *bench) flatMemory(ctx context.Context, t *figures.Table, p *rootfs.Planner, i planned) error {
	debug.FreeOSMemory()
	var resident [2]int
	done := 0
	for k, until := range []int{plansForMemory, 10 * plansForMemory} {
		for ; done < until; done++ {
			if err := plan(ctx, p, i.mounts); err != nil {
				return err
			}
		}
		var err error
		if resident[k], err = residentKiB(); err != nil {
			return err
		}
	}
	t.Note("Resident memory after %d plans of %s: %.1f MiB, after %d: %.1f MiB.",
		plansForMemory, i, float64(resident[0])/1024, 10*plansForMemory, float64(resident[1])/1024)
	return nil
}

// residentKiB is the second field of proc(5), statm.
func residentKiB() (int, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	words := bytes.Fields(text)
	if len(words) < 2 {
		return 0, fmt.Errorf("/proc/self/statm is %q", text)
	}
	pages, err := strconv.Atoi(string(words[1]))
	return pages * os.Getpagesize() / 1024, err
}

// indexes are plans whose index is not in the cache, and then is.
func (b *bench) indexes(ctx context.Context, images []planned) error {
	t := b.report.Table("plan with the index of merged layers", "ms")
	for round := range often * b.runs {
		for _, i := range images {
			if i.n == 1 {
				continue // needs none
			}
			p := b.planner(filepath.Join(b.dir, fmt.Sprintf("index-%d-%d", i.n, round)), nil)
			built, cached := i.String()+", built", i.String()+", cached"
			for _, row := range []*figures.Row{t.Row(built, ""), t.Row(cached, built)} {
				begun := time.Now()
				if err := plan(ctx, p, i.mounts); err != nil {
					return err
				}
				row.Add(milliseconds(time.Since(begun)))
			}
		}
	}
	return nil
}
