package guestspec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// resources keeps the limits that a cgroup of the guest can hold. Device rules
// are kept too: they narrow what the container may do with the guest's nodes.
func (r *Result) resources(in *specs.LinuxResources) *pb.LinuxResources {
	if in == nil {
		return nil
	}
	out := &pb.LinuxResources{}
	for _, d := range in.Devices {
		// The protocol has no wildcard but -1, as cgroup v1 had none but '*'.
		out.Devices = append(out.Devices, &pb.LinuxDeviceCgroup{
			Allow: d.Allow, Type: d.Type, Major: value(d.Major, -1), Minor: value(d.Minor, -1), Access: d.Access,
		})
	}
	if m := in.Memory; m != nil {
		out.Memory = &pb.LinuxMemory{
			Limit: value(m.Limit, 0), Reservation: value(m.Reservation, 0), Swap: value(m.Swap, 0),
			Swappiness: value(m.Swappiness, 0), DisableOOMKiller: value(m.DisableOOMKiller, false),
		}
	}
	if c := in.CPU; c != nil {
		if c.Cpus != "" || c.Mems != "" {
			r.drop("linux.resources.cpu.cpus, mems", "they number the host's processors and nodes")
		}
		out.CPU = &pb.LinuxCPU{
			Shares: value(c.Shares, 0), Quota: value(c.Quota, 0), Period: value(c.Period, 0),
			RealtimeRuntime: value(c.RealtimeRuntime, 0), RealtimePeriod: value(c.RealtimePeriod, 0),
		}
	}
	if in.BlockIO != nil {
		r.drop("linux.resources.blockIO", "it names devices of the host")
	}
	if in.Network != nil {
		r.drop("linux.resources.network", "cgroup v2 has no such controller")
	}
	if len(in.Rdma) > 0 {
		r.drop("linux.resources.rdma", "the agent's protocol has no field for it")
	}
	if len(in.Unified) > 0 {
		r.drop("linux.resources.unified", "the agent's protocol has no field for it")
	}
	if p := in.Pids; p != nil && p.Limit != nil {
		out.Pids = &pb.LinuxPids{Limit: *p.Limit}
	}
	for _, h := range in.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &pb.LinuxHugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	return out
}

func value[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
