package metrics

import (
	"math"
	"testing"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

func used(cpu, memory, limit uint64) *pb.StatsContainerResponse {
	return &pb.StatsContainerResponse{
		CgroupStats: &pb.CgroupStats{
			CpuStats: &pb.CpuStats{CpuUsage: &pb.CpuUsage{TotalUsage: cpu * 1000}},
			MemoryStats: &pb.MemoryStats{Stats: map[string]uint64{
				"cpu.stat.usage_usec": cpu, "memory.current": memory, "memory.max": limit, "anon": memory, "cpu.pressure.some.total": 9, "cpu.pressure.some.avg10": 9,
			}},
			PidsStats: &pb.PidsStats{Current: 2},
		},
		NetworkStats: []*pb.NetworkStats{{Name: "eth0", RxBytes: 7}},
	}
}

func TestAPodHasUsedWhatItsContainersHave(t *testing.T) {
	gone := Time(used(100, 1000, 1000))
	m := Of(Sum([]*pb.StatsContainerResponse{gone, used(10, 20, 30), used(1, 2, math.MaxUint64)}))
	if m.CPU.UsageUsec != 111 || m.Memory.Usage != 22 || m.Memory.Anon != 22 || m.Memory.UsageLimit != math.MaxUint64 || m.Pids.Current != 4 {
		t.Errorf("%v", m)
	}
	if m.CPU.PSI != nil || len(m.Network) != 1 || m.Network[0].RxBytes != 7 {
		t.Errorf("what does not add up: %v", m)
	}
	if m := Of(Sum(nil)); m.CPU.UsageUsec != 0 || m.Memory.Usage != 0 {
		t.Errorf("nothing: %v", m)
	}
}
