package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/bench/machine"
	"github.com/erofsvm/erofsvm/test/harness"
)

// results are the samples of one run of this program.
type results struct {
	report      figures.Report
	times       *figures.Table
	kib         *figures.Table
	image       string
	accelerator string
}

func newResults(image string) *results {
	r := &results{image: image}
	r.report.Title = "A container, from its creation to its end"
	r.times = r.report.Table("phases", "ms").Draw(figures.Spans, "start", "")
	r.times.Row(toAgent, floor)
	r.kib = r.report.Table("memory", "MiB")
	return r
}

// add adds a sample of a duration.
func (r *results) add(name string, took time.Duration) {
	r.times.Row(name, "").Add(milliseconds(took))
}

// span adds a phase of a container's creation, which began so long after its
// beginning.
func (r *results) span(name string, begin, took time.Duration) {
	r.times.Row(name, "").AddSpan(milliseconds(begin), milliseconds(took))
}

func (r *results) memory(name string, kib int64) {
	r.kib.Row(name, "").Add(float64(kib) / 1024)
}

func (r *results) median(name string) float64 {
	_, median, _, _ := figures.Spread(r.times.Row(name, "").Samples)
	return median
}

// write prints the report and writes it and the samples.
func (r *results) write(ctx context.Context, tree harness.Tree, dir string) error {
	r.finish()
	r.report.Machine = machine.Facts(ctx, tree)
	fmt.Printf("\n%s\n", r.report.Markdown())
	return r.report.Write(dir, "results")
}

// finish says what follows from the samples.
func (r *results) finish() {
	r.report.Host = fmt.Sprintf("%s, %s, %d CPUs.", r.image, r.accelerator, runtime.NumCPU())
	slices.SortStableFunc(r.kib.Rows, func(x, y *figures.Row) int { return strings.Compare(x.Name, y.Name) })
	if _, ratio, _, ok := figures.Spread(r.times.Ratios(r.times.Row(toAgent, floor))); ok {
		r.times.Note("QEMU exec to agent is %.2f of the floor (aim: 1.15). The host's own work is %.1f ms (aim: 150).",
			ratio, r.median(hostWork))
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
