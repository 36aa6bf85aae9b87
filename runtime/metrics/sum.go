package metrics

import (
	"strings"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Sum makes the statistics of a pod of those of its containers. A limit is none
// if one of them has none. The network is the pod's already, and that of the
// first who tells it; pressure and disks do not add up and are left out.
func Sum(all []*pb.StatsContainerResponse) *pb.StatsContainerResponse {
	cpu, throttled := &pb.CpuUsage{}, &pb.ThrottlingData{}
	memory, swap := &pb.MemoryData{}, &pb.MemoryData{}
	pids := &pb.PidsStats{}
	numbers := map[string]uint64{}
	out := &pb.StatsContainerResponse{CgroupStats: &pb.CgroupStats{
		CpuStats:    &pb.CpuStats{CpuUsage: cpu, ThrottlingData: throttled},
		MemoryStats: &pb.MemoryStats{Usage: memory, SwapUsage: swap, UseHierarchy: true, Stats: numbers},
		PidsStats:   pids,
	}}
	for _, one := range all {
		group := one.GetCgroupStats()
		used := group.GetCpuStats()
		cpu.TotalUsage += used.GetCpuUsage().GetTotalUsage()
		cpu.UsageInKernelmode += used.GetCpuUsage().GetUsageInKernelmode()
		cpu.UsageInUsermode += used.GetCpuUsage().GetUsageInUsermode()
		throttled.Periods += used.GetThrottlingData().GetPeriods()
		throttled.ThrottledPeriods += used.GetThrottlingData().GetThrottledPeriods()
		throttled.ThrottledTime += used.GetThrottlingData().GetThrottledTime()
		addMemory(memory, group.GetMemoryStats().GetUsage())
		addMemory(swap, group.GetMemoryStats().GetSwapUsage())
		out.CgroupStats.MemoryStats.Cache += group.GetMemoryStats().GetCache()
		pids.Current += group.GetPidsStats().GetCurrent()
		pids.Limit = added(pids.GetLimit(), group.GetPidsStats().GetLimit())
		for name, n := range group.GetMemoryStats().GetStats() {
			if sums(name) {
				numbers[name] = added(numbers[name], n)
			}
		}
		if out.NetworkStats == nil {
			out.NetworkStats = one.GetNetworkStats()
		}
	}
	return out
}

func addMemory(to, m *pb.MemoryData) {
	to.Usage = added(to.GetUsage(), m.GetUsage())
	to.MaxUsage = added(to.GetMaxUsage(), m.GetMaxUsage())
	to.Failcnt = added(to.GetFailcnt(), m.GetFailcnt())
	to.Limit = added(to.GetLimit(), m.GetLimit())
}

// added is a sum that ends at 2^64-1, which is how no limit is told.
func added(a, b uint64) uint64 {
	if a+b < a {
		return ^uint64(0)
	}
	return a + b
}

// sums says whether a number of docs/stats-wire.md is one of several that add up
// to that of all.
func sums(name string) bool {
	for _, file := range []string{"cpu.pressure.", "memory.pressure.", "io.pressure.", "hugetlb."} {
		if strings.HasPrefix(name, file) {
			return false
		}
	}
	return true
}

// Time is what of statistics still counts when their container is gone: the
// processor time.
func Time(of *pb.StatsContainerResponse) *pb.StatsContainerResponse {
	numbers := map[string]uint64{}
	for name, n := range of.GetCgroupStats().GetMemoryStats().GetStats() {
		if strings.HasPrefix(name, "cpu.stat.") {
			numbers[name] = n
		}
	}
	return &pb.StatsContainerResponse{CgroupStats: &pb.CgroupStats{
		CpuStats: of.GetCgroupStats().GetCpuStats(), MemoryStats: &pb.MemoryStats{Stats: numbers},
	}}
}
