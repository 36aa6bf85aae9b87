package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/harness"
)

// settle is how long pods are left alone before their memory is looked at.
const settle = 3 * time.Second

// run is one `ctr run`, as the person sees it who types it.
type run struct {
	output time.Duration // until the first byte
	end    time.Duration
	trace  *harness.Trace
}

func (b *bench) id() string {
	b.serial++
	return fmt.Sprintf("pod-%d", b.serial)
}

func (b *bench) ctrRun(ctx context.Context, w way, fromTemplate bool) (*run, error) {
	return b.runAs(ctx, b.id(), w, fromTemplate)
}

func (b *bench) runAs(ctx context.Context, id string, w way, fromTemplate bool) (*run, error) {
	ctx, cancel := context.WithTimeout(ctx, boot)
	defer cancel()
	cmd := b.c.Ctr(ctx, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", w.config,
		"--snapshotter", harness.Snapshotter, b.image, id, "echo", "here")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r := &run{}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	said := make([]byte, 1)
	_, readErr := io.ReadFull(out, said)
	r.output = time.Since(began)
	_, _ = io.Copy(io.Discard, out)
	err = errors.Join(readErr, cmd.Wait())
	r.end = time.Since(began)
	if err != nil {
		return nil, fmt.Errorf("ctr run %s: %w\n%s%s", id, err, errs.String(), b.c.LogTail(20))
	}
	if r.trace, err = b.c.Trace(id); err != nil {
		return nil, err
	}
	if (r.trace.Template != "") != fromTemplate {
		return nil, fmt.Errorf("%s began from template %q\n%s", id, r.trace.Template, b.c.LogTail(20))
	}
	return r, nil
}

// idle compares what so many idle pods take.
func (b *bench) idle(ctx context.Context) error {
	if b.pods == 0 {
		return nil
	}
	t := b.report.Table(fmt.Sprintf("PSS of %d idle pods", b.pods), "MiB")
	for _, w := range []way{b.boots, b.goesOn} {
		sums, err := b.idlePods(ctx, w)
		if err != nil {
			return err
		}
		for _, part := range []string{"QEMUs", "shims", "vsock daemons", "all", unmapped, "all and that"} {
			against := ""
			if w.template && part != unmapped { // of which booted ones have none
				against = part + ", " + b.boots.name
			}
			t.Row(part+", "+w.name, against).Add(float64(sums[part]) / 1024)
		}
	}
	t.Note("Aim: 0.5. The guest's memory is shared with the vsock daemon, and so no VM shares pages with another one. " +
		"PSS has only what a process has mapped; of a copy of a template's memory that is what the guest has touched. The last row has all of it.")
	return nil
}

// unmapped is memory of guests that counts for no process's PSS and is there all the same.
const unmapped = "memory of guests that nobody has mapped"

func (b *bench) idlePods(ctx context.Context, w way) (sums map[string]int64, err error) {
	var ids []string
	if _, err := b.c.WaitProcesses(ctx); err != nil { // whose memory would go meanwhile
		return nil, err
	}
	before, err := kib("/proc/meminfo", "Shmem:")
	if err != nil {
		return nil, err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), boot)
		defer cancel()
		for _, id := range ids {
			for _, args := range [][]string{{"task", "kill", "-s", "SIGKILL", id}, {"task", "delete", "--force", id}, {"container", "delete", id}} {
				_ = b.c.Ctr(ending, args...).Run() // the next one tries again
			}
		}
		_, left := b.c.WaitProcesses(ending)
		err = errors.Join(err, left)
	}()
	for i := range b.pods {
		fmt.Printf("%s: idle pod %d of %d\n", w.name, i+1, b.pods)
		id := b.id()
		ids = append(ids, id)
		cmd := b.c.Ctr(ctx, "run", "--detach", "--runtime", harness.Runtime, "--runtime-config-path", w.config,
			"--snapshotter", harness.Snapshotter, b.image, id, "sleep", "100000")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ctr run %s: %w\n%s", id, err, out)
		}
	}
	time.Sleep(settle)
	sums = map[string]int64{}
	for part, find := range map[string]func() ([]int, error){"shims": b.c.Shims, "QEMUs": b.c.VMs, "vsock daemons": b.c.VsockDaemons} {
		pids, err := find()
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			rollup := filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup")
			pss, err := kib(rollup, "Pss:")
			if err != nil {
				return nil, err
			}
			shared, err := kib(rollup, "Pss_Shmem:")
			if err != nil {
				return nil, err
			}
			sums[part] += pss
			sums["all"] += pss
			sums[unmapped] -= shared
		}
	}
	after, err := kib("/proc/meminfo", "Shmem:")
	if err != nil {
		return nil, err
	}
	sums[unmapped] += after - before
	sums["all and that"] = sums["all"] + sums[unmapped]
	return sums, nil
}

// kib is the number of KiB that a line of a file in /proc has: proc(5), meminfo and
// smaps_rollup.
func kib(path, key string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) >= 2 && words[0] == key {
			return strconv.ParseInt(words[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no line %s", path, key)
}

// bursts are how many pods are started at once, as far as they are asked for.
var bursts = []int{1, 2, 5, 10, 20}

// mostBoots of emulated guests at once are over before deadlines.agent, on two cores.
const mostBoots = 10

// burstAtOnce starts pods at the same time, and divides by their number how long it takes
// until the last of them has ended.
func (b *bench) burstAtOnce(ctx context.Context) error {
	if b.burst == 0 {
		return nil
	}
	t := b.report.Table("Pods started at once, running `echo` to their end: time for each of them", "ms").
		Draw(figures.Lines, "burst", "pods")
	for _, n := range bursts {
		if n > b.burst {
			break
		}
		for _, w := range []way{b.boots, b.goesOn} {
			if !w.template && n > mostBoots {
				continue
			}
			fmt.Printf("%s: %d at once\n", w.name, n)
			took, err := b.atOnce(ctx, n, w)
			if err != nil {
				return err
			}
			name := func(n int) string { return fmt.Sprintf("%s: %d at once", w.name, n) }
			against := ""
			if n > bursts[0] {
				against = name(bursts[0])
			}
			t.Row(name(n), against).At(w.name, float64(n)).Add(milliseconds(took) / float64(n))
		}
	}
	t.Note("Aim for 20: 1.5 times one alone, times the share of the processors that one alone does not use.")
	return nil
}

// atOnce is how long it takes until so many pods have come and gone.
func (b *bench) atOnce(ctx context.Context, n int, w way) (time.Duration, error) {
	errs := make([]error, n)
	var all sync.WaitGroup
	began := time.Now()
	for i := range n {
		id := b.id()
		all.Go(func() { _, errs[i] = b.runAs(ctx, id, w, w.template) })
	}
	all.Wait()
	return time.Since(began), errors.Join(errs...)
}
