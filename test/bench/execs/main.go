// Execs measures processes beside a container's own: what starting one costs, what
// goes through their streams, what is left of them, and whether the calls of others
// wait for them. It is the third part of `make bench`.
//
// It reports and asserts nothing, but that what was sent has arrived. What is
// compared is measured in turn, in one VM, so that the ratios mean something on a
// busy machine too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"syscall"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/bench/machine"
	"github.com/erofsvm/erofsvm/test/harness"
)

// Deadlines, with room for emulation on a busy machine.
const (
	boot = 2 * time.Minute
	step = time.Minute
)

type options struct {
	out     string
	image   string
	samples int   // of a latency
	execs   int   // after which memory is looked at again
	size    int64 // bytes through each stream
	much    int64 // bytes during which memory is watched
	runs    int
	parts   *regexp.Regexp
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	var o options
	var parts string
	flag.StringVar(&o.out, "out", ".build/bench", "folder for execs.json and execs.md")
	flag.StringVar(&o.image, "image", "first-light", "archive in .build/images to run")
	flag.IntVar(&o.samples, "samples", 200, "samples of each latency")
	flag.IntVar(&o.execs, "execs", 500, "execs before memory is looked at again")
	size := flag.Int64("size", 1024, "MiB through a stream, at least 1")
	much := flag.Int64("flow", 1024, "MiB through one standard output while memory is watched, at least 1")
	flag.IntVar(&o.runs, "runs", 1, "runs of each stream, at least 1")
	flag.StringVar(&parts, "parts", ".", "regular expression of the parts to measure: latency, streams, flow, memory, calls")
	flag.Parse()
	var err error
	if o.parts, err = regexp.Compile(parts); err != nil || flag.NArg() > 0 || *size < 1 || *much < 1 || o.runs < 1 || o.samples < 1 || o.execs < 1 {
		flag.Usage()
		os.Exit(2)
	}
	o.size, o.much = *size<<20, *much<<20
	if err := measure(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "execs:", err)
		os.Exit(1)
	}
}

// bench is one run of everything.
type bench struct {
	options
	guest  *guest
	report figures.Report
}

func measure(ctx context.Context, o options) (err error) {
	tree, err := harness.FindTree()
	if err != nil {
		return err
	}
	archive := tree.Build("images", o.image+".tar")
	if err := harness.Need("guest-image images", tree.Shim(), tree.Kernel(), tree.Initrd(), archive); err != nil {
		return err
	}
	c, err := harness.Start(ctx, tree, harness.Options{LogLevel: "warn"})
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), step)
		defer cancel()
		err = errors.Join(err, c.RemoveContainers(stopping), c.Stop(stopping))
	}()
	names, err := c.Import(ctx, archive, harness.Snapshotter)
	if err != nil {
		return err
	}
	b := &bench{options: o}
	if b.guest, err = startGuest(ctx, tree, c, names[0]); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.guest.end(ctx)) }()
	b.report = figures.Report{
		Title: "Execs and their streams",
		Host: fmt.Sprintf("%s, %d CPUs. What is compared was measured in turn, and a ratio is the median of those of the pairs.",
			b.guest.accelerator, runtime.NumCPU()),
		Machine: machine.Facts(ctx, tree),
	}
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"latency", b.latency},
		{"streams", b.streams},
		{"flow", b.flow},
		{"memory", b.memory},
		{"calls", b.flood},
	} {
		if !o.parts.MatchString(part.name) {
			continue
		}
		begun := time.Now()
		fmt.Printf("%s …\n", part.name)
		if err := part.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Printf("%s: %.0f s\n", part.name, time.Since(begun).Seconds())
	}
	fmt.Printf("\n%s\n", b.report.Markdown())
	return b.report.Write(o.out, "execs")
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
