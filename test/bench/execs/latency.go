package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/erofsvm/erofsvm/test/bench/figures"
)

// latency measures an exec of `true`, with the streams that a client opens, beside
// the shortest call that there is.
func (b *bench) latency(ctx context.Context) error {
	t := b.report.Table("exec in a running container", "ms", "p99")
	check := t.Row("Health.Check of the agent, nothing else", "")
	whole := t.Row("exec of `true`: added, started, ended, deleted", check.Name)
	started := t.Row("– of that, until it is started", check.Name)
	for i := range b.samples + 1 { // the first translates the code
		ctx, cancel := context.WithTimeout(b.guest.c.Context(ctx), step)
		defer cancel()
		begun := time.Now()
		if err := b.guest.agent.Check(ctx); err != nil {
			return err
		}
		checked := time.Since(begun)
		begun = time.Now()
		r, err := b.guest.exec(ctx, cio.NewCreator(cio.WithStreams(nil, nothing{}, nothing{})), "true")
		if err != nil {
			return err
		}
		running := time.Since(begun)
		if err := r.finish(ctx); err != nil {
			return err
		}
		if i > 0 {
			check.Add(milliseconds(checked))
			whole.Add(milliseconds(time.Since(begun)))
			started.Add(milliseconds(running))
		}
	}
	for _, r := range []*figures.Row{check, whole, started} {
		r.More = []string{p99(r.Samples)}
	}
	t.Note("%d samples in turn.", b.samples)
	return nil
}

// p99 is the sample that at most one in a hundred exceeds.
func p99(samples []float64) string {
	if len(samples) == 0 {
		return "–"
	}
	sorted := slices.Sorted(slices.Values(samples))
	return fmt.Sprintf("%.1f", sorted[(len(sorted)*99+99)/100-1])
}

// nothing is a reader that wants nothing.
type nothing struct{}

func (nothing) Write(p []byte) (int, error) { return len(p), nil }
