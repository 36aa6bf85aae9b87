// Package metrics makes the statistics that containerd takes,
// io.containerd.cgroups.v2.Metrics, of those that the agent gives, as
// docs/stats-wire.md says. It is pure: any goroutine may call it, and nothing is
// asked, kept or changed.
package metrics

import (
	"slices"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Of makes containerd's message of the agent's. Numbers that the agent does not
// have are 0.
func Of(in *pb.StatsContainerResponse) *stats.Metrics {
	cgroup := in.GetCgroupStats()
	files := counters(cgroup.GetMemoryStats().GetStats())
	out := &stats.Metrics{
		Pids: &stats.PidsStat{Current: cgroup.GetPidsStats().GetCurrent(), Limit: cgroup.GetPidsStats().GetLimit()},
		CPU: &stats.CPUStat{
			UsageUsec:     cgroup.GetCpuStats().GetCpuUsage().GetTotalUsage() / 1000,
			UserUsec:      cgroup.GetCpuStats().GetCpuUsage().GetUsageInUsermode() / 1000,
			SystemUsec:    cgroup.GetCpuStats().GetCpuUsage().GetUsageInKernelmode() / 1000,
			NrPeriods:     cgroup.GetCpuStats().GetThrottlingData().GetPeriods(),
			NrThrottled:   cgroup.GetCpuStats().GetThrottlingData().GetThrottledPeriods(),
			ThrottledUsec: cgroup.GetCpuStats().GetThrottlingData().GetThrottledTime() / 1000,
			PSI:           files.pressure("cpu.pressure."),
		},
		Memory: &stats.MemoryStat{
			Usage:        cgroup.GetMemoryStats().GetUsage().GetUsage(),
			UsageLimit:   cgroup.GetMemoryStats().GetUsage().GetLimit(),
			MaxUsage:     cgroup.GetMemoryStats().GetUsage().GetMaxUsage(),
			SwapUsage:    cgroup.GetMemoryStats().GetSwapUsage().GetUsage(),
			SwapLimit:    cgroup.GetMemoryStats().GetSwapUsage().GetLimit(),
			SwapMaxUsage: cgroup.GetMemoryStats().GetSwapUsage().GetMaxUsage(),
			PSI:          files.pressure("memory.pressure."),
		},
		MemoryEvents: &stats.MemoryEvents{},
		Io:           &stats.IOStat{Usage: ioUsage(cgroup.GetBlkioStats()), PSI: files.pressure("io.pressure.")},
	}
	// Where the agent has the file itself, its number counts: the fields above
	// have the shape of cgroup v1.
	files.fill(out.Pids, "pids.")
	files.set(out.Pids, "limit", "pids.max")
	files.fill(out.CPU, "cpu.stat.")
	files.fill(out.Memory, "")
	for field, file := range map[string]string{
		"usage": "memory.current", "usage_limit": "memory.max", "max_usage": "memory.peak",
		"swap_usage": "memory.swap.current", "swap_limit": "memory.swap.max", "swap_max_usage": "memory.swap.peak",
	} {
		files.set(out.Memory, field, file)
	}
	files.fill(out.MemoryEvents, "memory.events.")
	out.Hugetlb = hugetlb(cgroup.GetHugetlbStats(), files)
	for _, n := range in.GetNetworkStats() {
		out.Network = append(out.Network, &stats.NetworkStat{
			Name:    n.GetName(),
			RxBytes: n.GetRxBytes(), RxPackets: n.GetRxPackets(), RxErrors: n.GetRxErrors(), RxDropped: n.GetRxDropped(),
			TxBytes: n.GetTxBytes(), TxPackets: n.GetTxPackets(), TxErrors: n.GetTxErrors(), TxDropped: n.GetTxDropped(),
		})
	}
	return out
}

// counters are numbers by the names of the files, and lines, that they stand in.
type counters map[string]uint64

// fill sets each number of m from the counter that is called prefix and the
// name of the field. What is not there is left as it is.
func (c counters) fill(m interface{ ProtoReflect() protoreflect.Message }, prefix string) {
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		c.set(m, string(fields.Get(i).Name()), prefix+string(fields.Get(i).Name()))
	}
}

func (c counters) set(m interface{ ProtoReflect() protoreflect.Message }, field, name string) {
	f := m.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field))
	if n, ok := c[name]; ok && f.Kind() == protoreflect.Uint64Kind {
		m.ProtoReflect().Set(f, protoreflect.ValueOfUint64(n))
	}
}

// pressure is nil if the agent's kernel has no such file.
func (c counters) pressure(prefix string) *stats.PSIStats {
	line := func(prefix string) *stats.PSIData {
		if _, ok := c[prefix+"total"]; !ok {
			return nil
		}
		percent := func(name string) float64 { return float64(c[prefix+name]) / 100 }
		return &stats.PSIData{Avg10: percent("avg10"), Avg60: percent("avg60"), Avg300: percent("avg300"), Total: c[prefix+"total"]}
	}
	some, full := line(prefix+"some."), line(prefix+"full.")
	if some == nil && full == nil {
		return nil
	}
	return &stats.PSIStats{Some: some, Full: full}
}

// ioUsage joins the lists of the protocol to a line for each device.
func ioUsage(in *pb.BlkioStats) []*stats.IOEntry {
	type device struct{ major, minor uint64 }
	lines := map[device]*stats.IOEntry{}
	var out []*stats.IOEntry
	for _, list := range []struct {
		entries     []*pb.BlkioStatsEntry
		read, write func(*stats.IOEntry) *uint64
	}{
		{in.GetIoServiceBytesRecursive(), func(e *stats.IOEntry) *uint64 { return &e.Rbytes }, func(e *stats.IOEntry) *uint64 { return &e.Wbytes }},
		{in.GetIoServicedRecursive(), func(e *stats.IOEntry) *uint64 { return &e.Rios }, func(e *stats.IOEntry) *uint64 { return &e.Wios }},
	} {
		for _, e := range list.entries {
			at := device{e.GetMajor(), e.GetMinor()}
			line := lines[at]
			if line == nil {
				line = &stats.IOEntry{Major: at.major, Minor: at.minor}
				lines[at] = line
				out = append(out, line)
			}
			switch e.GetOp() {
			case "Read", "read":
				*list.read(line) = e.GetValue()
			case "Write", "write":
				*list.write(line) = e.GetValue()
			}
		}
	}
	return out
}

func hugetlb(in map[string]*pb.HugetlbStats, files counters) []*stats.HugeTlbStat {
	var out []*stats.HugeTlbStat
	for size, h := range in {
		out = append(out, &stats.HugeTlbStat{
			Pagesize: size, Current: h.GetUsage(), Max: files["hugetlb."+size+".max"], Failcnt: h.GetFailcnt(),
		})
	}
	slices.SortFunc(out, func(a, b *stats.HugeTlbStat) int {
		if a.Pagesize < b.Pagesize {
			return -1
		}
		return 1
	})
	return out
}
