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
	out := &pb.LinuxResources{Memory: r.memory(in.Memory), CPU: r.cpu(in.CPU), BlockIO: r.blockIO(in.BlockIO)}
	for _, d := range in.Devices {
		// The protocol has no wildcard but -1, as cgroup v1 had none but '*'.
		out.Devices = append(out.Devices, &pb.LinuxDeviceCgroup{
			Allow: d.Allow, Type: d.Type, Major: value(d.Major, -1), Minor: value(d.Minor, -1), Access: d.Access,
		})
	}
	if p := in.Pids; p != nil && p.Limit != nil {
		out.Pids = &pb.LinuxPids{Limit: *p.Limit}
	}
	for _, h := range in.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &pb.LinuxHugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	if in.Network != nil {
		r.drop("linux.resources.network", noController)
	}
	if len(in.Rdma) > 0 {
		r.drop("linux.resources.rdma", noField)
	}
	if len(in.Unified) > 0 {
		r.drop("linux.resources.unified", noField)
	}
	return out
}

// noController is the reason for what cgroup v1 alone had.
const noController = "cgroup v2 has no such control"

func (r *Result) memory(m *specs.LinuxMemory) *pb.LinuxMemory {
	if m == nil {
		return nil
	}
	//lint:ignore SA1019 deprecated, and a spec can still have it.
	kernel := m.Kernel
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"kernel", kernel != nil}, {"kernelTCP", m.KernelTCP != nil},
		{"swappiness", m.Swappiness != nil}, {"disableOOMKiller", m.DisableOOMKiller != nil}, {"useHierarchy", m.UseHierarchy != nil},
	} {
		if f.set {
			r.drop("linux.resources.memory."+f.name, noController)
		}
	}
	if m.CheckBeforeUpdate != nil {
		r.drop("linux.resources.memory.checkBeforeUpdate", noField)
	}
	return &pb.LinuxMemory{Limit: value(m.Limit, 0), Reservation: value(m.Reservation, 0), Swap: value(m.Swap, 0)}
}

func (r *Result) cpu(c *specs.LinuxCPU) *pb.LinuxCPU {
	if c == nil {
		return nil
	}
	if c.Cpus != "" {
		r.drop("linux.resources.cpu.cpus", "they number the host's processors")
	}
	if c.Mems != "" {
		r.drop("linux.resources.cpu.mems", "they number the host's memory nodes")
	}
	if c.RealtimeRuntime != nil {
		r.drop("linux.resources.cpu.realtimeRuntime", noController)
	}
	if c.RealtimePeriod != nil {
		r.drop("linux.resources.cpu.realtimePeriod", noController)
	}
	if c.Burst != nil {
		r.drop("linux.resources.cpu.burst", noField)
	}
	if c.Idle != nil {
		r.drop("linux.resources.cpu.idle", noField)
	}
	return &pb.LinuxCPU{Shares: value(c.Shares, 0), Quota: value(c.Quota, 0), Period: value(c.Period, 0)}
}

// blockIO keeps the weight, which is the container's against its neighbours in
// the guest. Everything else names a device of the host.
func (r *Result) blockIO(b *specs.LinuxBlockIO) *pb.LinuxBlockIO {
	if b == nil {
		return nil
	}
	if b.LeafWeight != nil {
		r.drop("linux.resources.blockIO.leafWeight", noController)
	}
	for _, f := range []struct {
		name string
		n    int
	}{
		{"weightDevice", len(b.WeightDevice)},
		{"throttleReadBpsDevice", len(b.ThrottleReadBpsDevice)}, {"throttleWriteBpsDevice", len(b.ThrottleWriteBpsDevice)},
		{"throttleReadIOPSDevice", len(b.ThrottleReadIOPSDevice)}, {"throttleWriteIOPSDevice", len(b.ThrottleWriteIOPSDevice)},
	} {
		if f.n > 0 {
			r.drop("linux.resources.blockIO."+f.name, "it names a device of the host")
		}
	}
	if b.Weight == nil {
		return nil
	}
	return &pb.LinuxBlockIO{Weight: uint32(*b.Weight)}
}

func value[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
