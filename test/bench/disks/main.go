// Disks measures what the strategies for layers cost: the plan and its
// descriptor, the index of merged layers, the plugging of a disk of many extents,
// reads through it, and walks over the tree that the guest makes of it. It is
// the second part of `make bench`.
//
// It reports and asserts nothing, but that both sides of a comparison see the
// same tree. What is compared is measured in turn, so that the ratios mean
// something on a busy machine too. While it measures it runs one VM at a time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/bench/machine"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/truth/layers"
)

// often is how many samples there are for each run of what is short, and so at the
// mercy of what else the machine does.
const often = 2

// Deadlines, with room for emulation on a busy machine.
const (
	whole = 20 * time.Minute
	boot  = 2 * time.Minute
	step  = 3 * time.Minute
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	out := flag.String("out", ".build/bench", "folder for disks.json and disks.md")
	runs := flag.Int("runs", 5, "runs of each measurement, at least 1")
	ways := flag.Bool("ways", true, "try each way for QEMU to serve a disk, in VMs of its own")
	flag.Parse()
	if *runs < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, end := context.WithTimeout(ctx, whole)
	defer end()
	if err := measure(ctx, *out, *runs, *ways); err != nil {
		fmt.Fprintln(os.Stderr, "disks:", err)
		os.Exit(1)
	}
}

// bench is one run of everything.
type bench struct {
	tree   harness.Tree
	dir    string // of all that is made
	maker  layers.Maker
	runs   int
	ways   bool
	report figures.Report
}

func measure(ctx context.Context, out string, runs int, ways bool) (err error) {
	tree, err := harness.FindTree()
	if err != nil {
		return err
	}
	if err := errors.Join(
		harness.Need("tools", tree.MkfsErofs(), tree.QEMU(), tree.Tool("base", "rootfs.tar")),
		harness.Need("guest-image", tree.Kernel(), tree.Initrd()),
		harness.Need("bench, or run test/setup/tools.sh fio", fioRoot(tree)),
	); err != nil {
		return err
	}
	dir, err := tree.MakeRun("disks")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{
		tree: tree, dir: dir, runs: runs, ways: ways, maker: layers.Maker{Mkfs: tree.MkfsErofs(), Dir: dir},
		report: figures.Report{
			Title:   "Disks and strategies",
			Host:    fmt.Sprintf("%d runs in turn, %d of what is short, %d CPUs. A ratio is the median of those of the pairs.", runs, often*runs, runtime.NumCPU()),
			Machine: machine.Facts(ctx, tree),
		},
	}
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"plans and descriptors", b.plans},
		{"plugging", b.plugging},
		{"inside a guest", b.inGuest},
	} {
		begun := time.Now()
		fmt.Printf("%s …\n", part.name)
		if err := part.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Printf("%s: %.0f s\n", part.name, time.Since(begun).Seconds())
	}
	fmt.Printf("\n%s\n", b.report.Markdown())
	return b.report.Write(out, "disks")
}

// planner is one as the runtime makes it.
func (b *bench) planner(cache string, change func(*rootfs.Options)) *rootfs.Planner {
	o := rootfs.Options{CacheDir: cache, MkfsErofs: b.tree.MkfsErofs(), Partitions: true, MakeUpper: true}
	if change != nil {
		change(&o)
	}
	return rootfs.NewPlanner(o)
}

// plain makes layers of archives, the lowest first.
func (b *bench) plain(ctx context.Context, prefix string, tars [][]byte) ([]string, error) {
	paths := make([]string, len(tars))
	for i, tar := range tars {
		var err error
		if paths[i], err = b.maker.Plain(ctx, fmt.Sprintf("%s-%d.erofs", prefix, i), tar); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// count is "1 thing" or "2 things".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
