package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/erofsvm/erofsvm/test/harness"
)

// settle is how long the pods are left alone before their memory is looked at: a
// guest goes on for a moment after its container has started.
const settle = 3 * time.Second

// podTimeout is for one pod to start, or to end.
const podTimeout = 3 * time.Minute

// parseCounts reads ascending numbers with commas between them.
func parseCounts(text string) ([]int, error) {
	var counts []int
	for field := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 || len(counts) > 0 && n <= counts[len(counts)-1] {
			return nil, fmt.Errorf("-pods %q: want ascending numbers of pods, such as 1,5,10", text)
		}
		counts = append(counts, n)
	}
	return counts, nil
}

// density has so many idle pods at once, one VM each, and notes what all their
// processes together take: the slope is what one more pod costs its host before its
// containers use anything, the overhead of a RuntimeClass.
func (b *bencher) density(ctx context.Context, counts []int) (err error) {
	var running []*idlePod
	defer func() {
		ctx := b.c.Context(context.WithoutCancel(ctx))
		for _, p := range running {
			err = errors.Join(err, p.end(ctx))
		}
	}()
	sums := make([]map[string]int64, len(counts))
	for i, n := range counts {
		for len(running) < n {
			fmt.Printf("pod %d of %d\n", len(running)+1, counts[len(counts)-1])
			p, err := b.idle(ctx, fmt.Sprintf("pod-%d", len(running)+1))
			if err != nil {
				return err
			}
			running = append(running, p)
		}
		time.Sleep(settle)
		if sums[i], err = b.footprint(); err != nil {
			return err
		}
		for part, kib := range sums[i] {
			b.results.memory(fmt.Sprintf("%2d pods, PSS of %s", n, part), kib)
		}
	}
	for part, kib := range slope(counts, sums) {
		b.results.memory("one more pod, PSS of "+part, kib)
	}
	return nil
}

// slope is what grows from the first count to the last, for each pod between.
func slope(counts []int, sums []map[string]int64) map[string]int64 {
	last := len(counts) - 1
	if last < 1 {
		return nil
	}
	more := map[string]int64{}
	for part, kib := range sums[last] {
		more[part] = (kib - sums[0][part]) / int64(counts[last]-counts[0])
	}
	return more
}

// footprint is the PSS of all processes that make up pods, by program, and
// together.
func (b *bencher) footprint() (map[string]int64, error) {
	sums := map[string]int64{}
	for part, find := range map[string]func() ([]int, error){
		"shims": b.c.Shims, "QEMUs": b.c.VMs, "vsock daemons": b.c.VsockDaemons,
	} {
		pids, err := find()
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			_, pss, err := rollup(pid)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", part, err)
			}
			sums[part] += pss
			sums["all"] += pss
		}
	}
	return sums, nil
}

// idlePod is a container that sleeps in a VM of its own.
type idlePod struct {
	container client.Container
	task      client.Task
}

func (b *bencher) idle(ctx context.Context, id string) (_ *idlePod, err error) {
	ctx, cancel := context.WithTimeout(b.c.Context(ctx), podTimeout)
	defer cancel()
	image, err := b.c.Client().GetImage(ctx, b.image)
	if err != nil {
		return nil, err
	}
	p := &idlePod{}
	p.container, err = b.c.Client().NewContainer(ctx, id,
		client.WithImage(image), client.WithSnapshotter(harness.Snapshotter), client.WithNewSnapshot(id, image),
		client.WithRuntime(harness.Runtime, &runtimeoptions.Options{ConfigPath: b.c.ShimConfigPath()}),
		client.WithNewSpec(oci.WithDefaultSpec(), oci.WithImageConfig(image), oci.WithProcessArgs("sleep", "100000")))
	if err != nil {
		return nil, err
	}
	if p.task, err = p.container.NewTask(ctx, cio.NullIO); err == nil {
		err = p.task.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, p.end(context.WithoutCancel(ctx)))
	}
	return p, nil
}

func (p *idlePod) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	var errs []error
	if p.task != nil {
		exit, err := p.task.Wait(ctx)
		if err == nil {
			err = p.task.Kill(ctx, syscall.SIGKILL)
		}
		if err == nil {
			<-exit
		}
		_, deleted := p.task.Delete(ctx, client.WithProcessKill)
		errs = append(errs, err, deleted)
	}
	return errors.Join(append(errs, p.container.Delete(ctx, client.WithSnapshotCleanup))...)
}
