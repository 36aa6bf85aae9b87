// Templates measures what a template saves: the time until the agent answers and
// until `ctr run` prints its first output, and the memory of idle pods, each beside
// pods that boot. It is a part of `make bench`.
//
// It reports and asserts nothing, but that every pod began as it was meant to. What is
// compared is measured in turn, so that the ratios mean something on a busy machine too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/bench/machine"
	"github.com/erofsvm/erofsvm/test/harness"
)

// Deadlines, with room for emulation on a busy machine.
const (
	boot = 5 * time.Minute
	step = time.Minute
)

type options struct {
	out   string
	image string
	runs  int
	pods  int
	burst int
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	var o options
	flag.StringVar(&o.out, "out", ".build/bench", "folder for templates.json and templates.md")
	flag.StringVar(&o.image, "image", "first-light", "archive in .build/images to run")
	flag.IntVar(&o.runs, "runs", 5, "runs of each measurement, at least 1")
	flag.IntVar(&o.pods, "pods", 10, "idle pods to have at once for their memory, 0 for none")
	flag.IntVar(&o.burst, "burst", 20, "the most pods to start at once, 0 for none")
	flag.Parse()
	if flag.NArg() > 0 || o.runs < 1 || o.pods < 0 || o.burst < 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := measure(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "templates:", err)
		os.Exit(1)
	}
}

// way is how a pod's VM begins.
type way struct {
	name     string
	template bool
	config   string // of the shim
}

// bench is one run of everything.
type bench struct {
	options
	c      *harness.Containerd
	image  string
	boots  way
	goesOn way
	serial int
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
	b := &bench{
		options: o, c: c, image: names[0],
		boots:  way{name: "a VM that boots", config: c.ShimConfigPath()},
		goesOn: way{name: "a VM that goes on from a template", template: true, config: filepath.Join(c.Dir(), "templates.toml")},
	}
	if err := c.ShimConfig().Set("hypervisor", "templates", "on").Write(b.goesOn.config); err != nil {
		return err
	}
	accelerator, err := b.prepare(ctx)
	if err != nil {
		return err
	}
	b.report = figures.Report{
		Title:   "Templates",
		Host:    fmt.Sprintf("%s, %d CPUs. What is compared was measured in turn, and a ratio is the median of those of the pairs.", accelerator, runtime.NumCPU()),
		Machine: machine.Facts(ctx, tree),
	}
	for _, part := range []func(context.Context) error{b.starts, b.idle, b.burstAtOnce} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("\n%s\n", b.report.Markdown())
	return b.report.Write(o.out, "templates")
}

// prepare has the template built behind a first pod, which also fills the page cache.
func (b *bench) prepare(ctx context.Context) (accelerator string, err error) {
	fmt.Println("building the template")
	first, err := b.ctrRun(ctx, b.goesOn, false)
	if err != nil {
		return "", err
	}
	settled, cancel := context.WithTimeout(ctx, boot)
	defer cancel()
	if left, err := b.c.WaitProcesses(settled); err != nil || len(left) > 0 {
		return "", fmt.Errorf("the template is not there: %v, %w", left, err)
	}
	return first.trace.Accelerator, nil
}

// Rows of the first table.
const (
	toAgent  = "exec of QEMU to the agent"
	toOutput = "ctr run to its first output"
	wholeRun = "ctr run to its end"
)

// starts compares the two, one after the other.
func (b *bench) starts(ctx context.Context) error {
	t := b.report.Table("A pod, running `echo`", "ms")
	phases := map[bool]*figures.Table{
		false: b.report.Table("Its phases, in "+b.boots.name, "ms").Draw(figures.Spans, "start-cold", ""),
		true:  b.report.Table("Its phases, in "+b.goesOn.name, "ms").Draw(figures.Spans, "start-template", ""),
	}
	name := func(what string, w way) string { return what + ", " + w.name }
	for i := range b.runs {
		fmt.Printf("run %d of %d\n", i+1, b.runs)
		for _, w := range []way{b.boots, b.goesOn} {
			r, err := b.ctrRun(ctx, w, w.template)
			if err != nil {
				return err
			}
			for _, p := range r.trace.Phases {
				phases[w.template].Row(p.Name, "").AddSpan(milliseconds(p.Began()), milliseconds(p.Took()))
			}
			agent, ok := r.trace.Phase("qemu exec to agent")
			if !ok {
				return errors.New("the trace has no time of the agent")
			}
			for _, figure := range []struct {
				what string
				took time.Duration
			}{{toAgent, agent.Took()}, {toOutput, r.output}, {wholeRun, r.end}} {
				against := ""
				if w.template {
					against = name(figure.what, b.boots)
				}
				t.Row(name(figure.what, w), against).Add(milliseconds(figure.took))
			}
		}
	}
	t.Note("Aims: to the agent 0.2, to the first output 0.35.")
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
