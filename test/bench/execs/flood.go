package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
)

// flood measures the calls that look at a task, while nothing happens and while
// the output of an exec comes as fast as it can.
func (b *bench) flood(ctx context.Context) (err error) {
	t := b.report.Table("calls of containerd's task service", "ms", "p99")
	calls := []struct {
		name string
		do   func(context.Context) error
	}{
		{"State", func(ctx context.Context) error {
			_, err := b.guest.task.Status(ctx)
			return err
		}},
		{"Stats", func(ctx context.Context) error {
			_, err := b.guest.task.Metrics(ctx)
			return err
		}},
	}
	sample := func(suffix, against string) error {
		for range b.samples {
			for _, call := range calls {
				ctx, cancel := context.WithTimeout(b.guest.c.Context(ctx), step)
				begun := time.Now()
				err := call.do(ctx)
				cancel()
				if err != nil {
					return fmt.Errorf("%s%s: %w", call.name, suffix, err)
				}
				if against != "" {
					against = call.name + idle
				}
				t.Row(call.name+suffix, against).Add(milliseconds(time.Since(begun)))
			}
		}
		for _, call := range calls {
			row := t.Row(call.name+suffix, "")
			row.More = []string{p99(row.Samples)}
		}
		return nil
	}
	if err := sample(idle, ""); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(b.guest.c.Context(ctx))
	defer cancel()
	r, err := b.guest.exec(ctx, cio.NewCreator(cio.WithStreams(nil, nothing{}, nothing{})), "dd", "if=/dev/zero", "bs=64k")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.kill(ctx)) }()
	t.Note("%d samples of each. Flooded: an exec writes to its standard output as fast as it is read.", b.samples)
	return sample(", flooded", idle)
}

// idle marks the calls while nothing happens.
const idle = ", idle"
