package cgstat

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// group makes a directory with the files of a cgroup.
func group(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// as is what a 6.12 kernel shows of a busy container, cut where it repeats.
var as = map[string]string{
	"memory.stat":         "anon 1032192\nfile 4096\nkernel 65536\nworkingset_refault_anon 0\n",
	"memory.events":       "low 0\nhigh 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 0\n",
	"memory.swap.events":  "high 0\nmax 4\nfail 5\n",
	"memory.current":      "1101824\n",
	"memory.max":          "104857600\n",
	"memory.peak":         "2000000\n",
	"memory.swap.current": "12\n",
	"memory.swap.max":     "max\n",
	"memory.swap.peak":    "13\n",
	"cpu.stat":            "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnice_usec 0\ncore_sched.force_idle_usec 0\nnr_periods 7\nnr_throttled 3\nthrottled_usec 250\nnr_bursts 0\nburst_usec 0\n",
	"cpu.pressure":        "some avg10=1.05 avg60=0.00 avg300=100.00 total=123456\nfull avg10=0.00 avg60=0.30 avg300=0.00 total=7\n",
	"pids.current":        "2\n",
	"pids.max":            "max\n",
	"io.stat":             "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:16 \n8:0 rbytes=7 wbytes=0 rios=1 wios=0 dbytes=0 dios=0 cost.usage=9\n",

	"hugetlb.2MB.current":      "4194304\n",
	"hugetlb.2MB.max":          "8388608\n",
	"hugetlb.2MB.events":       "max 2\n",
	"hugetlb.2MB.events.local": "max 1\n",
	"hugetlb.2MB.rsvd.current": "0\n",
	"hugetlb.1GB.current":      "0\n",
	"hugetlb.1GB.max":          "max\n",
	"hugetlb.1GB.events":       "max 0\n",
}

func TestEveryNumberIsInTheMap(t *testing.T) {
	got, err := Read(group(t, as))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{
		"anon": 1032192, "file": 4096, "kernel": 65536, "workingset_refault_anon": 0,
		"memory.events.low": 0, "memory.events.high": 0, "memory.events.max": 31, "memory.events.oom": 2, "memory.events.oom_kill": 1, "memory.events.oom_group_kill": 0,
		"memory.swap.events.high": 0, "memory.swap.events.max": 4, "memory.swap.events.fail": 5,
		"memory.current": 1101824, "memory.max": 104857600, "memory.peak": 2000000,
		"memory.swap.current": 12, "memory.swap.max": math.MaxUint64, "memory.swap.peak": 13,
		"cpu.stat.usage_usec": 1500, "cpu.stat.user_usec": 1000, "cpu.stat.system_usec": 500, "cpu.stat.nice_usec": 0, "cpu.stat.core_sched.force_idle_usec": 0,
		"cpu.stat.nr_periods": 7, "cpu.stat.nr_throttled": 3, "cpu.stat.throttled_usec": 250, "cpu.stat.nr_bursts": 0, "cpu.stat.burst_usec": 0,
		"cpu.pressure.some.avg10": 105, "cpu.pressure.some.avg60": 0, "cpu.pressure.some.avg300": 10000, "cpu.pressure.some.total": 123456,
		"cpu.pressure.full.avg10": 0, "cpu.pressure.full.avg60": 30, "cpu.pressure.full.avg300": 0, "cpu.pressure.full.total": 7,
		"pids.current": 2, "pids.max": math.MaxUint64,
		"hugetlb.2MB.max": 8388608, "hugetlb.1GB.max": math.MaxUint64,
	}
	if stats := got.GetMemoryStats().GetStats(); !reflect.DeepEqual(stats, want) {
		t.Errorf("%v\nwant %v", stats, want)
	}
}

func TestFieldsOfTheOldShape(t *testing.T) {
	got, err := Read(group(t, as))
	if err != nil {
		t.Fatal(err)
	}
	got.MemoryStats.Stats = nil
	want := &pb.CgroupStats{
		CpuStats: &pb.CpuStats{
			CpuUsage:       &pb.CpuUsage{TotalUsage: 1500000, UsageInUsermode: 1000000, UsageInKernelmode: 500000},
			ThrottlingData: &pb.ThrottlingData{Periods: 7, ThrottledPeriods: 3, ThrottledTime: 250000},
		},
		MemoryStats: &pb.MemoryStats{
			Cache: 4096, UseHierarchy: true,
			Usage:       &pb.MemoryData{Usage: 1101824, MaxUsage: 2000000, Limit: 104857600, Failcnt: 31},
			SwapUsage:   &pb.MemoryData{Usage: 12, MaxUsage: 13, Limit: math.MaxUint64, Failcnt: 4},
			KernelUsage: &pb.MemoryData{Usage: 65536},
		},
		PidsStats: &pb.PidsStats{Current: 2, Limit: math.MaxUint64},
		BlkioStats: &pb.BlkioStats{
			IoServiceBytesRecursive: []*pb.BlkioStatsEntry{
				{Major: 254, Op: "Read", Value: 1}, {Major: 254, Op: "Write", Value: 2}, {Major: 254, Op: "Discard", Value: 5},
				{Major: 8, Op: "Read", Value: 7}, {Major: 8, Op: "Write"}, {Major: 8, Op: "Discard"},
			},
			IoServicedRecursive: []*pb.BlkioStatsEntry{
				{Major: 254, Op: "Read", Value: 3}, {Major: 254, Op: "Write", Value: 4}, {Major: 254, Op: "Discard", Value: 6},
				{Major: 8, Op: "Read", Value: 1}, {Major: 8, Op: "Write"}, {Major: 8, Op: "Discard"},
			},
		},
		HugetlbStats: map[string]*pb.HugetlbStats{"2MB": {Usage: 4194304, Failcnt: 2}, "1GB": {}},
	}
	if !proto.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
}

func TestWhatIsNotCountedIsLeftOut(t *testing.T) {
	got, err := Read(group(t, map[string]string{"cpu.stat": "usage_usec 5\n", "io.stat": ""}))
	if err != nil || !reflect.DeepEqual(got.GetMemoryStats().GetStats(), map[string]uint64{"cpu.stat.usage_usec": 5}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a group that is gone: %v", err)
	}
}

func TestFileThatIsNotAsDocumentedIsNamed(t *testing.T) {
	for file, text := range map[string]string{
		"memory.stat":         "anon\n",
		"memory.events":       "oom_kill x\n",
		"memory.current":      "-1\n",
		"pids.max":            "many\n",
		"cpu.pressure":        "some avg10=1.5 avg60\n",
		"io.stat":             "254 rbytes=1\n",
		"hugetlb.2MB.events":  "max\n",
		"hugetlb.2MB.current": "x\n",
	} {
		files := map[string]string{file: text}
		if strings.HasSuffix(file, ".current") {
			files["hugetlb.2MB.events"] = "max 0\n"
		}
		if _, err := Read(group(t, files)); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestOOMKills(t *testing.T) {
	if n, err := OOMKills(group(t, as)); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := OOMKills(t.TempDir()); n != 0 || err != nil {
		t.Errorf("without the controller: %d, %v", n, err)
	}
}

func TestNetworkHasEveryInterface(t *testing.T) {
	const dev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0
  eth0: 18446744073709551615  12    3    4    5     6          7         8     9000      10   11   12   13    14      15         16
eth0:1:       1       2    3    4    0     0          0         0        5       6    7    8    0     0       0          0
`
	got, err := Network(strings.NewReader(dev))
	if err != nil {
		t.Fatal(err)
	}
	want := []*pb.NetworkStats{
		{Name: "lo", RxBytes: 100, RxPackets: 2, TxBytes: 100, TxPackets: 2},
		{Name: "eth0", RxBytes: math.MaxUint64, RxPackets: 12, RxErrors: 3, RxDropped: 4, TxBytes: 9000, TxPackets: 10, TxErrors: 11, TxDropped: 12},
		{Name: "eth0:1", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8},
	}
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if !proto.Equal(got[i], want[i]) {
			t.Errorf("%v, want %v", got[i], want[i])
		}
	}
	for _, bad := range []string{"eth0: 1 2 3\n", "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 x\n"} {
		if _, err := Network(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
