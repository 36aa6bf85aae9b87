package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/bench/figures"
)

// What pods cost together: the PSS of their processes by program, all of it, and what
// their cgroups have, which is what a kubelet sees and limits.
const (
	shims      = "shims, PSS"
	qemus      = "QEMUs, PSS"
	daemons    = "vsock daemons, PSS"
	together   = "all processes, PSS"
	workingSet = "working set of the pods' cgroups"
)

var parts = []string{shims, qemus, daemons, together, workingSet}

// density has so many idle pods at once, with a container each. The slope is what one
// more pod costs its host before its containers use anything, the overhead of a
// RuntimeClass.
func (b *bench) density(ctx context.Context) (err error) {
	var running []*pod
	defer func() {
		for _, p := range running {
			err = errors.Join(err, p.remove(ctx))
		}
	}()
	sums := make([]map[string]float64, len(b.pods))
	for i, n := range b.pods {
		for len(running) < n {
			fmt.Printf("pod %d of %d\n", len(running)+1, b.pods[len(b.pods)-1])
			p, err := b.pod(ctx, handlers[0])
			if err != nil {
				return err
			}
			running = append(running, p)
			if err := p.container(ctx); err != nil {
				return err
			}
		}
		time.Sleep(settle)
		if sums[i], err = b.footprint(ctx, running); err != nil {
			return err
		}
	}
	table := b.report.Table("What idle pods cost", "MiB").Draw(figures.Lines, "idle-pods", "pods")
	more := b.report.Table("What one more idle pod costs", "MiB")
	for _, part := range parts {
		for i, n := range b.pods {
			table.Row(fmt.Sprintf("%s: %d", part, n), "").At(part, float64(n)).Add(sums[i][part])
		}
		if one, ok := slope(b.pods, sums, part); ok {
			more.Row(part, "").Add(one)
		}
	}
	return nil
}

// slope is what grows of a part from the first count to the last, for each pod
// between. Of one count it is not ok.
func slope(counts []int, sums []map[string]float64, part string) (more float64, ok bool) {
	last := len(counts) - 1
	if last < 1 {
		return 0, false
	}
	return (sums[last][part] - sums[0][part]) / float64(counts[last]-counts[0]), true
}

// footprint is what all pods that run cost, in MiB.
func (b *bench) footprint(ctx context.Context, running []*pod) (map[string]float64, error) {
	sums := map[string]float64{}
	for part, find := range map[string]func() ([]int, error){shims: b.c.Shims, qemus: b.c.VMs, daemons: b.c.VsockDaemons} {
		pids, err := find()
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			kib, err := pss(pid)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", part, err)
			}
			sums[part] += float64(kib) / 1024
			sums[together] += float64(kib) / 1024
		}
	}
	for _, p := range running {
		s, err := p.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: p.id})
		if err != nil {
			return nil, fmt.Errorf("statistics of pod %s: %w", p.config.GetMetadata().GetName(), err)
		}
		sums[workingSet] += float64(s.GetStats().GetLinux().GetMemory().GetWorkingSetBytes().GetValue()) / (1 << 20)
	}
	return sums, nil
}

// pss reads the PSS of a process, in KiB: proc(5), smaps_rollup.
func pss(pid int) (int64, error) {
	file, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if words := strings.Fields(lines.Text()); len(words) >= 2 && words[0] == "Pss:" {
			return strconv.ParseInt(words[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("process %d has no PSS: %w", pid, errors.Join(lines.Err(), os.ErrNotExist))
}
