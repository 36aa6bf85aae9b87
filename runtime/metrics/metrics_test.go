package metrics

import (
	"reflect"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

func TestMetricsAreWhatTheFilesOfTheCgroupSay(t *testing.T) {
	const unlimited = 1<<64 - 1
	in := &pb.StatsContainerResponse{
		CgroupStats: &pb.CgroupStats{
			MemoryStats: &pb.MemoryStats{Stats: map[string]uint64{
				"anon": 1, "file": 2, "pgfault": 3, "workingset_refault": 4, "not_known_yet": 5,
				"memory.current": 10, "memory.max": unlimited, "memory.peak": 12,
				"memory.swap.current": 13, "memory.swap.max": 14, "memory.swap.peak": 15,
				"memory.events.oom": 20, "memory.events.oom_kill": 21, "memory.events.max": 22, "memory.swap.events.max": 99,
				"cpu.stat.usage_usec": 30, "cpu.stat.user_usec": 31, "cpu.stat.nr_throttled": 32, "cpu.stat.burst_usec": 33,
				"cpu.pressure.some.avg10": 1234, "cpu.pressure.some.total": 40,
				"io.pressure.full.avg300": 1, "io.pressure.full.total": 41,
				"pids.current": 50, "pids.max": 51, "hugetlb.2MB.max": 60,
			}},
			BlkioStats: &pb.BlkioStats{
				IoServiceBytesRecursive: []*pb.BlkioStatsEntry{
					{Major: 254, Minor: 16, Op: "Read", Value: 1}, {Major: 254, Minor: 16, Op: "Write", Value: 2},
					{Major: 254, Minor: 16, Op: "Discard", Value: 3}, {Major: 254, Minor: 32, Op: "Read", Value: 4},
				},
				IoServicedRecursive: []*pb.BlkioStatsEntry{{Major: 254, Minor: 16, Op: "Read", Value: 5}, {Major: 254, Minor: 16, Op: "Write", Value: 6}},
			},
			HugetlbStats: map[string]*pb.HugetlbStats{"2MB": {Usage: 61, Failcnt: 62}, "1GB": {Usage: 63}},
		},
		NetworkStats: []*pb.NetworkStats{{Name: "eth0", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8}},
	}
	want := &stats.Metrics{
		Pids: &stats.PidsStat{Current: 50, Limit: 51},
		CPU: &stats.CPUStat{
			UsageUsec: 30, UserUsec: 31, NrThrottled: 32, BurstUsec: 33,
			PSI: &stats.PSIStats{Some: &stats.PSIData{Avg10: 12.34, Total: 40}},
		},
		Memory: &stats.MemoryStat{
			Anon: 1, File: 2, Pgfault: 3, WorkingsetRefault: 4,
			Usage: 10, UsageLimit: unlimited, MaxUsage: 12, SwapUsage: 13, SwapLimit: 14, SwapMaxUsage: 15,
		},
		MemoryEvents: &stats.MemoryEvents{Max: 22, Oom: 20, OomKill: 21},
		Io: &stats.IOStat{
			Usage: []*stats.IOEntry{{Major: 254, Minor: 16, Rbytes: 1, Wbytes: 2, Rios: 5, Wios: 6}, {Major: 254, Minor: 32, Rbytes: 4}},
			PSI:   &stats.PSIStats{Full: &stats.PSIData{Avg300: 0.01, Total: 41}},
		},
		Hugetlb: []*stats.HugeTlbStat{{Pagesize: "1GB", Current: 63}, {Pagesize: "2MB", Current: 61, Failcnt: 62, Max: 60}},
		Network: []*stats.NetworkStat{{Name: "eth0", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8}},
	}
	if got := Of(in); !proto.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
}

func TestMetricsOfAnAgentThatKnowsNoFiles(t *testing.T) {
	in := &pb.StatsContainerResponse{CgroupStats: &pb.CgroupStats{
		CpuStats: &pb.CpuStats{
			CpuUsage:       &pb.CpuUsage{TotalUsage: 3000, UsageInUsermode: 2000, UsageInKernelmode: 1000},
			ThrottlingData: &pb.ThrottlingData{Periods: 4, ThrottledPeriods: 5, ThrottledTime: 6000},
		},
		MemoryStats: &pb.MemoryStats{
			Usage: &pb.MemoryData{Usage: 7, MaxUsage: 8, Limit: 9}, SwapUsage: &pb.MemoryData{Usage: 10, MaxUsage: 11, Limit: 12},
		},
		PidsStats: &pb.PidsStats{Current: 13, Limit: 14},
	}}
	want := &stats.Metrics{
		Pids:   &stats.PidsStat{Current: 13, Limit: 14},
		CPU:    &stats.CPUStat{UsageUsec: 3, UserUsec: 2, SystemUsec: 1, NrPeriods: 4, NrThrottled: 5, ThrottledUsec: 6},
		Memory: &stats.MemoryStat{Usage: 7, UsageLimit: 9, MaxUsage: 8, SwapUsage: 10, SwapLimit: 12, SwapMaxUsage: 11},
		Io:     &stats.IOStat{}, MemoryEvents: &stats.MemoryEvents{},
	}
	if got := Of(in); !proto.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	if got := Of(&pb.StatsContainerResponse{}); got.Memory == nil || got.Pids == nil || got.CPU == nil {
		t.Errorf("nothing at all: %v", got)
	}
}

// TestEveryNumberOfMemoryStatIsTaken: each field has the name of its line.
func TestEveryNumberOfMemoryStatIsTaken(t *testing.T) {
	numbers := map[string]uint64{}
	fields := (&stats.MemoryStat{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); f.Kind() == protoreflect.Uint64Kind && f.Number() < 32 { // usage and what follows are files of their own
			numbers[string(f.Name())] = uint64(i) + 1
		}
	}
	got := reflect.ValueOf(Of(&pb.StatsContainerResponse{CgroupStats: &pb.CgroupStats{MemoryStats: &pb.MemoryStats{Stats: numbers}}}).Memory).Elem()
	set := 0
	for i := range got.NumField() {
		if f := got.Field(i); f.Kind() == reflect.Uint64 && f.Uint() > 0 {
			set++
		}
	}
	if set != len(numbers) || set < 30 {
		t.Errorf("%d of %d numbers arrived", set, len(numbers))
	}
}

func TestMetricsAreOfTheTypeThatContainerdKnows(t *testing.T) {
	packed, err := typeurl.MarshalAnyToProto(Of(&pb.StatsContainerResponse{}))
	if err != nil || packed.TypeUrl != "io.containerd.cgroups.v2.Metrics" {
		t.Errorf("%q, %v", packed.GetTypeUrl(), err)
	}
}
