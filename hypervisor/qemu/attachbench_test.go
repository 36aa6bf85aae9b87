package qemu

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor"
)

// BenchmarkAttach plugs a vmdk disk of so many extents into a VM whose guest
// never runs, and unplugs it outside the timing. Beside the time of an Attach it
// reports the medians of that and of its steps. The ways are paths, open files,
// and, as what handing those over could cost at best, paths that lead to open
// files of this process.
func BenchmarkAttach(b *testing.B) {
	for _, n := range []int{1, 10, 100, 300} {
		for _, way := range []string{"paths", "files", "proc"} {
			b.Run(fmt.Sprintf("%s/%d", way, n), func(b *testing.B) { benchmarkAttach(b, way, n) })
		}
	}
}

func benchmarkAttach(b *testing.B, way string, extents int) {
	spec := benchSpec(b)
	m, err := Start(b.Context(), spec)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := m.Kill(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	disk := benchDisk(b, way, extents)
	var total, lend, node, device, settle []time.Duration
	for b.Loop() {
		began := time.Now()
		if _, err := m.Attach(b.Context(), disk); err != nil {
			b.Fatal(err)
		}
		total = append(total, time.Since(began))

		b.StopTimer()
		m.tasks.Wait()
		settle = append(settle, time.Since(began)-total[len(total)-1])
		if err := m.Detach(b.Context(), disk.ID); err != nil {
			b.Fatal(err)
		}
		steps := attachInSteps(b, m, disk)
		m.mu.Lock()
		for i := range m.slots.free { // there is no guest to wait for
			m.slots.free[i].ready = time.Time{}
		}
		m.mu.Unlock()
		lend, node, device = append(lend, steps[0]), append(node, steps[1]), append(device, steps[2])
		b.StartTimer()
	}
	for name, times := range map[string][]time.Duration{
		"attach": total, "files": lend, "blockdev-add": node, "device_add": device, "take-back": settle,
	} {
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, name+"-ms")
	}
}

// attachInSteps is what attach does, with a clock.
func attachInSteps(b *testing.B, m *Machine, want hypervisor.Disk) (steps [3]time.Duration) {
	b.Helper()
	ctx := b.Context()
	d, err := m.reserve(want.ID, m.spec.BlockDriver)
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	step := func(i int, err error) {
		if err != nil {
			b.Fatal(err)
		}
		now := time.Now()
		steps[i], began = now.Sub(began), now
	}
	name, err := m.lend(ctx, d, want)
	step(0, err)
	step(1, m.proc.monitor.Execute(ctx, "blockdev-add", node(d, want, name, m.aio, false), nil))
	d.node = true
	step(2, m.proc.monitor.Execute(ctx, "device_add", m.spec.BlockDriver.device(d), nil))
	d.there, d.plugged = true, true
	if err := m.remove(ctx, d); err != nil {
		b.Fatal(err)
	}
	<-d.turn
	return steps
}

// benchSpec has disks that go at once.
func benchSpec(b *testing.B) Spec {
	spec := stoppedSpec(b)
	spec.BlockDriver = VirtioSCSI
	return spec
}

func benchDisk(b *testing.B, way string, extents int) hypervisor.Disk {
	b.Helper()
	files := make([]*os.File, extents)
	names := make([]string, extents)
	for i := range files {
		names[i] = filled(b, byte(i)) // in a directory of its own, as layers are
		if way == "paths" {
			continue
		}
		f, err := os.Open(names[i])
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { f.Close() })
		files[i], names[i] = f, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	}
	if way == "files" {
		return layers("bench", files...)
	}
	text, err := vmdkText(names)
	if err != nil {
		b.Fatal(err)
	}
	path := b.TempDir() + "/layers.vmdk"
	if err := os.WriteFile(path, text, 0o600); err != nil {
		b.Fatal(err)
	}
	return hypervisor.Disk{ID: "bench", Driver: hypervisor.DriverVMDK, Path: path, ReadOnly: true}
}
