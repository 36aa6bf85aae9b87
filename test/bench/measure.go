package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/erofsvm/erofsvm/test/harness"
)

// Names of what is measured outside the shim. Those of its own phases come from
// its trace.
const (
	shimStart = "shim start (task create less the shim's own part)"
	planCold  = "plan, the fsmeta built"
	planWarm  = "plan, the fsmeta cached"
	exitGone  = "exit to all processes gone"
	wholeRun  = "task create to all gone, running `true`"
	hostWork  = "all that the host does besides the boot"
	toAgent   = "qemu exec to agent"
	floor     = "floor: bare boot to a trivial init"
)

type bencher struct {
	c       *harness.Containerd
	tree    harness.Tree
	image   string
	trivial string // initramfs of the floor
	results *results
}

// times of one container, as its caller sees them.
type times struct {
	create, start, exit, gone time.Duration // from the request to create the task
	trace                     *harness.Trace
	output                    string
}

// measure takes one sample of everything: first with an empty cache, for the
// one phase that depends on it, then as usual, right after the floor.
func (b *bencher) measure(ctx context.Context, i int) error {
	if err := os.RemoveAll(filepath.Join(b.c.CacheDir(), "merge")); err != nil {
		return err
	}
	cold, err := b.run(ctx, fmt.Sprintf("cold-%d", i), nil)
	if err != nil {
		return err
	}
	if p, ok := cold.trace.Phase("plan"); ok {
		b.results.add(planCold, p.Took())
	}
	bare, err := bareBoot(ctx, b.tree, b.results.accelerator, b.trivial)
	if err != nil {
		return err
	}
	b.results.add(floor, bare)
	warm, err := b.run(ctx, fmt.Sprintf("warm-%d", i), nil)
	if err != nil {
		return err
	}
	for _, p := range warm.trace.Phases {
		name := p.Name
		if name == "plan" {
			name = planWarm
		}
		b.results.span(name, p.Began(), p.Took())
	}
	create, _ := warm.trace.Phase("create")
	agent, _ := warm.trace.Phase(toAgent)
	b.results.add(shimStart, warm.create-create.Took())
	b.results.add(exitGone, warm.gone-warm.exit)
	b.results.add(wholeRun, warm.gone)
	b.results.add(hostWork, warm.create-agent.Took()+warm.gone-warm.exit-guestPart(warm.trace))
	return b.guestSteps(ctx, i)
}

// guestPart is how long the host waits for a guest that has booted, on the way up and
// on the way down.
func guestPart(t *harness.Trace) time.Duration {
	var sum time.Duration
	for _, name := range []string{"agent connect", "make unique", "personalise", "container create", "container remove"} {
		if p, ok := t.Phase(name); ok {
			sum += p.Took()
		}
	}
	return sum
}

// run runs a container to its end. It must end with 0, unless during is given:
// that is called while it runs, and ends it.
func (b *bencher) run(ctx context.Context, id string, during func(context.Context, client.Task) error, opts ...oci.SpecOpts) (_ *times, err error) {
	ctx, cancel := context.WithTimeout(b.c.Context(ctx), 3*time.Minute)
	defer cancel()
	image, err := b.c.Client().GetImage(ctx, b.image)
	if err != nil {
		return nil, err
	}
	if len(opts) == 0 {
		opts = []oci.SpecOpts{oci.WithProcessArgs("true")}
	}
	container, err := b.c.Client().NewContainer(ctx, id,
		client.WithImage(image), client.WithSnapshotter(harness.Snapshotter), client.WithNewSnapshot(id, image),
		client.WithRuntime(harness.Runtime, &runtimeoptions.Options{ConfigPath: b.c.ShimConfigPath()}),
		client.WithNewSpec(append([]oci.SpecOpts{oci.WithDefaultSpec(), oci.WithImageConfig(image)}, opts...)...))
	if err != nil {
		return nil, err
	}
	defer func() {
		deleting, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, container.Delete(deleting, client.WithSnapshotCleanup))
	}()

	var out, problems bytes.Buffer // each stream is copied by a goroutine of its own
	var took times
	begun := time.Now()
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, &out, &problems)))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_, _ = task.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
		}
	}()
	took.create = time.Since(begun)
	exit, err := task.Wait(ctx)
	if err != nil {
		return nil, err
	}
	if err := task.Start(ctx); err != nil {
		return nil, err
	}
	took.start = time.Since(begun)
	if during != nil {
		if err := during(ctx, task); err != nil {
			return nil, err
		}
	}
	status := <-exit
	took.exit = time.Since(begun)
	if code, _, err := status.Result(); during == nil && (err != nil || code != 0) {
		return nil, fmt.Errorf("%s: exit code %d: %w\n%s", id, code, err, problems.String())
	}
	if _, err := task.Delete(ctx); err != nil {
		return nil, err
	}
	if left, err := b.c.WaitProcesses(ctx); err != nil || len(left) > 0 {
		return nil, fmt.Errorf("%s: processes are left: %v %w", id, left, err)
	}
	took.gone = time.Since(begun)
	took.output = out.String()
	took.trace, err = b.c.Trace(id)
	return &took, err
}
