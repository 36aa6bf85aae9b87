package metrics

import (
	"github.com/containerd/cgroups/v3/cgroup2/stats"

	"github.com/erofsvm/erofsvm/runtime/hostgroup"
)

// OfHost makes containerd's message of what a cgroup of the host uses, of whichever
// version that is.
func OfHost(in hostgroup.Usage) *stats.Metrics {
	return &stats.Metrics{
		Pids: &stats.PidsStat{Current: in.Processes},
		CPU:  &stats.CPUStat{UsageUsec: in.CPU / 1000, UserUsec: in.User / 1000, SystemUsec: in.System / 1000},
		Memory: &stats.MemoryStat{
			Usage: in.Memory, UsageLimit: in.Limit, InactiveFile: in.InactiveFile,
			Anon: in.Anonymous, Pgfault: in.Faults, Pgmajfault: in.Major,
		},
	}
}
