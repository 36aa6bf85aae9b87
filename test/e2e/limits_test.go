package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// metrics asks for the statistics of a container's task.
func metrics(t *testing.T, bed *e2etest.Bed, c *e2etest.Container) *stats.Metrics {
	t.Helper()
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
	defer cancel()
	metric, err := c.Task.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	value, err := typeurl.UnmarshalAny(metric.Data)
	if err != nil {
		t.Fatal(err)
	}
	m, ok := value.(*stats.Metrics)
	if !ok {
		t.Fatalf("metrics are %T", value)
	}
	return m
}

// TestLimitsAndStatistics: a limit is in the container's cgroup in the guest,
// before and after an update, and statistics say what its files say.
func TestLimitsAndStatistics(t *testing.T) {
	bed := e2etest.Newest(t)
	c := bed.Start(t, e2etest.Spec{
		Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sleep", "1000"},
		Opts: []oci.SpecOpts{
			oci.WithMemoryLimit(64 << 20), oci.WithCPUCFS(50000, 100000), oci.WithPidsLimit(77),
			// What containerd's own specification leaves out.
			oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}),
			oci.WithMounts([]specs.Mount{{Type: "cgroup", Source: "cgroup", Destination: "/sys/fs/cgroup", Options: []string{"ro"}}}),
		},
	})
	read := func(file string) string {
		t.Helper()
		out, errs, code := c.RunExec(t, "cat", "/sys/fs/cgroup/"+file)
		if code != 0 {
			t.Fatalf("%s: %s", file, errs)
		}
		return strings.TrimSpace(out)
	}
	expect := func(limits map[string]string) {
		t.Helper()
		for file, want := range limits {
			if got := read(file); got != want {
				t.Errorf("%s is %q, want %q", file, got, want)
			}
		}
	}
	expect(map[string]string{"memory.max": "67108864", "cpu.max": "50000 100000", "pids.max": "77"})

	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
	defer cancel()
	memory, quota, period := int64(80<<20), int64(30000), uint64(100000)
	err := c.Task.Update(ctx, client.WithResources(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &memory}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period},
	}))
	if err != nil {
		t.Fatal(err)
	}
	expect(map[string]string{"memory.max": "83886080", "cpu.max": "30000 100000", "pids.max": "77"})

	before := cgroupCounters(read)
	m := metrics(t, bed, c)
	after := cgroupCounters(read)
	for name, told := range toldCounters(m) {
		if least, ok := before[name]; !ok || told < least || told > after[name] {
			t.Errorf("%s is %d in the statistics, and in the guest's file (%t) was %d before and %d after", name, told, ok, least, after[name])
		}
	}
	if m.GetMemory().GetUsageLimit() != uint64(memory) || m.GetPids().GetLimit() != 77 {
		t.Errorf("limits in the statistics: memory %d, pids %d", m.GetMemory().GetUsageLimit(), m.GetPids().GetLimit())
	}
	for _, field := range []struct {
		name  string
		value uint64
	}{{"memory usage", m.GetMemory().GetUsage()}, {"pids", m.GetPids().GetCurrent()}, {"cpu", m.GetCPU().GetUsageUsec()}} {
		if field.value == 0 {
			t.Errorf("%s is 0 in the statistics", field.name)
		}
	}
	usage, err := strconv.ParseUint(read("memory.current"), 10, 64)
	if err != nil || usage > 4*m.GetMemory().GetUsage()+8<<20 || m.GetMemory().GetUsage() > 4*usage+8<<20 {
		t.Errorf("memory.current is %d (%v), the statistics say %d", usage, err, m.GetMemory().GetUsage())
	}

	c.Kill(t, syscall.SIGKILL)
	c.WaitExit(t)
	if m := metrics(t, bed, c); m.GetCPU() == nil {
		t.Error("a task that has exited has no statistics")
	}
	c.Delete(t)
}

// cgroupCounters are those of the files of a cgroup that only grow.
func cgroupCounters(read func(file string) string) map[string]uint64 {
	counters := map[string]uint64{}
	for _, file := range []string{"cpu.stat", "memory.stat", "memory.events"} {
		for line := range strings.Lines(read(file)) {
			if key, text, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
				if n, err := strconv.ParseUint(text, 10, 64); err == nil {
					counters[file+" "+key] = n
				}
			}
		}
	}
	for _, word := range strings.Fields(read("io.stat")) { // of each device
		if key, text, ok := strings.Cut(word, "="); ok {
			if n, err := strconv.ParseUint(text, 10, 64); err == nil {
				counters["io.stat "+key] += n
			}
		}
	}
	return counters
}

// toldCounters are the same by the statistics.
func toldCounters(m *stats.Metrics) map[string]uint64 {
	cpu, memory, events := m.GetCPU(), m.GetMemory(), m.GetMemoryEvents()
	told := map[string]uint64{
		"cpu.stat usage_usec": cpu.GetUsageUsec(), "cpu.stat user_usec": cpu.GetUserUsec(), "cpu.stat system_usec": cpu.GetSystemUsec(),
		"cpu.stat nr_periods": cpu.GetNrPeriods(), "cpu.stat nr_throttled": cpu.GetNrThrottled(), "cpu.stat throttled_usec": cpu.GetThrottledUsec(),
		"memory.stat pgfault": memory.GetPgfault(), "memory.stat pgmajfault": memory.GetPgmajfault(),
		"memory.events max": events.GetMax(), "memory.events oom": events.GetOom(), "memory.events oom_kill": events.GetOomKill(),
	}
	for _, device := range m.GetIo().GetUsage() {
		told["io.stat rbytes"] += device.GetRbytes()
		told["io.stat wbytes"] += device.GetWbytes()
		told["io.stat rios"] += device.GetRios()
		told["io.stat wios"] += device.GetWios()
	}
	return told
}

// TestOutOfMemoryIsToldBeforeTheExit, and counted.
func TestOutOfMemoryIsToldBeforeTheExit(t *testing.T) {
	bed := e2etest.Newest(t)
	all := bed.Events(t, "")
	c := bed.Start(t, e2etest.Spec{
		Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sh", "-c", "dd if=/dev/zero of=/dev/null bs=60M count=1"},
		Opts: []oci.SpecOpts{oci.WithMemoryLimit(16 << 20)},
	})
	if code := c.WaitExit(t); code != 137 {
		t.Errorf("code %d, want 137: %s", code, c.Stderr)
	}
	if n := metrics(t, bed, c).GetMemoryEvents().GetOomKill(); n == 0 {
		t.Error("the statistics count no kill")
	}
	c.Delete(t)
	want := []string{"/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete"}
	if got := all.Of(t, c.ID); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

// TestCtrFlags: what a person types to shape a container.
func TestCtrFlags(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"file": "of the host", "below/other": "deep"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	stdout, stderr, code := bed.CtrRun(t, nil,
		"--memory-limit", fmt.Sprint(48<<20), "--cpus", "0.5", "--env", "HELLO=two words", "--read-only",
		"--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro",
		"--mount", "type=bind,src="+dir+",dst=/mnt,options=rbind:ro",
		"--mount", "type=bind,src="+filepath.Join(dir, "file")+",dst=/etc/single,options=rbind:ro",
		image, "flags", "sh", "-c",
		`cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup) && cat memory.max cpu.max; echo "$HELLO"; cat /mnt/file /mnt/below/other /etc/single; echo; touch /x || echo read-only`)
	want := "50331648\n50000 100000\ntwo words\nof the hostdeepof the host\nread-only\n"
	if code != 0 || stdout != want {
		t.Errorf("code %d, stdout\n%swant\n%sstderr: %s", code, stdout, want, stderr)
	}
}

// TestASeccompProfileIsInForceInTheGuest, that which containerd has by default.
func TestASeccompProfileIsInForceInTheGuest(t *testing.T) {
	bed := e2etest.Newest(t)
	stdout, stderr, code := bed.CtrRun(t, nil, "--seccomp", bed.Image(t, "one", harness.Snapshotter), "seccomp",
		"grep", "Seccomp:", "/proc/self/status")
	if code != 0 || strings.TrimSpace(stdout) != "Seccomp:\t2" {
		t.Errorf("code %d, %q, want a filter (2); stderr: %s", code, stdout, stderr)
	}
}

// TestANamespaceOfTheHostIsRefusedByName: it cannot be joined from a VM.
func TestANamespaceOfTheHostIsRefusedByName(t *testing.T) {
	bed := e2etest.Newest(t)
	_, stderr, code := bed.CtrRun(t, nil, "--with-ns", "pid:/proc/1/ns/pid", bed.Image(t, "one", harness.Snapshotter), "with-ns", "true")
	if code == 0 || !strings.Contains(stderr, "/proc/1/ns/pid") || !strings.Contains(stderr, "pid namespace") {
		t.Errorf("code %d, stderr %q", code, stderr)
	}
}
