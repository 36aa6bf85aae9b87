// Bench measures the phases of a container's life in a VM, and the memory of
// the parts, beside the floor: the same QEMU and kernel booted bare to an init
// that only says that it is there. It is what `make bench` runs.
//
// It reports and asserts nothing: the figures are those of the machine, and are
// only worth comparing with others of the same run. While it measures it runs
// one VM at a time and nothing else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/erofsvm/erofsvm/test/harness"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	out := flag.String("out", ".build/bench", "folder for results.json and results.md")
	runs := flag.Int("runs", 5, "runs of each measurement, 0 for memory alone")
	image := flag.String("image", "first-light", "archive in .build/images to run")
	flag.Parse()
	if *runs < 0 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := bench(ctx, *out, *image, *runs); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, out, archive string, runs int) (err error) {
	tree, err := harness.FindTree()
	if err != nil {
		return err
	}
	if err := harness.Need("guest-image images", tree.Shim(), tree.Kernel(), tree.Initrd(), tree.Build("images", archive+".tar")); err != nil {
		return err
	}
	c, err := harness.Start(ctx, tree, harness.Options{LogLevel: "warn"})
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, c.RemoveContainers(stopping), c.Stop(stopping))
	}()
	names, err := c.Import(ctx, tree.Build("images", archive+".tar"), harness.Snapshotter)
	if err != nil {
		return err
	}

	r := newResults(names[0])
	b := &bencher{c: c, tree: tree, image: names[0], results: r}
	dir, err := tree.MakeRun("floor")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if b.trivial, err = trivialInitrd(ctx, dir); err != nil {
		return err
	}
	// The first run finds out which accelerator there is, and fills the page
	// cache; it is not counted.
	fmt.Println("warming up")
	first, err := b.run(ctx, "warm-up", nil)
	if err != nil {
		return err
	}
	r.accelerator = first.trace.Accelerator
	if _, err := bareBoot(ctx, tree, r.accelerator, b.trivial); err != nil {
		return err
	}
	for i := range runs {
		fmt.Printf("run %d of %d\n", i+1, runs)
		if err := b.measure(ctx, i); err != nil {
			return err
		}
	}
	fmt.Println("memory")
	if err := b.memory(ctx); err != nil {
		return err
	}
	return r.write(ctx, tree, out)
}
