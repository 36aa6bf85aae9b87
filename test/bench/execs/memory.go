package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/erofsvm/erofsvm/test/bench/figures"
)

// warmUp is how many execs come before memory is looked at first: until then
// caches and pools fill.
const warmUp = 20

// memory looks at the parts of the VM before and after many execs.
func (b *bench) memory(ctx context.Context) error {
	if err := b.trues(ctx, warmUp); err != nil {
		return err
	}
	before, err := b.look(ctx)
	if err != nil {
		return err
	}
	if err := b.trues(ctx, b.execs); err != nil {
		return err
	}
	after, err := b.look(ctx)
	if err != nil {
		return err
	}
	title := fmt.Sprintf("before and after %d execs", b.execs)
	compare(b.report.Table("memory "+title, "MiB"), "MiB", before, after)
	compare(b.report.Table("open descriptors "+title, "count"), "descriptors", before, after)
	return nil
}

// trues runs an exec of `true` so many times.
func (b *bench) trues(ctx context.Context, n int) error {
	for range n {
		err := func() error {
			ctx, cancel := context.WithTimeout(b.guest.c.Context(ctx), step)
			defer cancel()
			r, err := b.guest.exec(ctx, cio.NewCreator(cio.WithStreams(nil, nothing{}, nothing{})), "true")
			if err != nil {
				return err
			}
			return r.finish(ctx)
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// amount is one figure of one part of the VM.
type amount struct {
	name, unit string
	value      float64
}

// look takes the memory and the descriptors of every part, of the agent with the
// eyes of an exec, which is the guest's root.
func (b *bench) look(ctx context.Context) ([]amount, error) {
	all, err := b.guest.parts.amounts()
	if err != nil {
		return nil, err
	}
	text, err := b.guest.output(ctx, "sh", "-c", "cat /proc/1/status && ls /proc/1/fd | wc -l")
	if err != nil {
		return nil, err
	}
	rss, err := field(text, "VmRSS:")
	if err != nil {
		return nil, fmt.Errorf("the guest's PID 1: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	descriptors, err := strconv.Atoi(lines[len(lines)-1])
	if err != nil {
		return nil, fmt.Errorf("descriptors of the guest's PID 1: %w", err)
	}
	return append(all, amount{"agent RSS, in the guest", "MiB", rss}, amount{"agent, in the guest", "descriptors", float64(descriptors)}), nil
}

// compare makes rows of the amounts in a unit.
func compare(t *figures.Table, unit string, before, after []amount) {
	for i, a := range before {
		if a.unit == unit {
			t.Row(a.name+", before", "").Add(a.value)
			t.Row(a.name+", after", a.name+", before").Add(after[i].value)
		}
	}
}

// flow sends much through the standard output of one task and watches the parts.
func (b *bench) flow(ctx context.Context) error {
	whole := *b
	whole.size = b.much
	before, err := b.guest.parts.amounts()
	if err != nil {
		return err
	}
	most := append([]amount(nil), before...)
	ctx, cancel := context.WithTimeout(b.guest.c.Context(ctx), step+time.Duration(b.much/slowest)*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := whole.outByTask(ctx)
		ended <- err
	}()
	// There is no event that tells of memory.
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for watching := true; watching; {
		select {
		case err = <-ended:
			watching = false
		case <-ticker.C:
			now, looked := b.guest.parts.amounts()
			if looked != nil {
				cancel()
				return fmt.Errorf("%w, %w", looked, <-ended)
			}
			for i, a := range now {
				most[i].value = max(most[i].value, a.value)
			}
		}
	}
	if err != nil {
		return err
	}
	t := b.report.Table(fmt.Sprintf("memory while %d MiB go through the standard output of a task", b.much>>20), "MiB")
	for i, a := range before {
		if a.unit == "MiB" {
			t.Row(a.name+", before", "").Add(a.value)
			t.Row(a.name+", most", a.name+", before").Add(most[i].value)
		}
	}
	return nil
}
