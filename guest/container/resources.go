package container

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// set returns a pointer to v, or nil for the zero that means "not set".
func set[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

func toResources(r *pb.LinuxResources) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	out := &specs.LinuxResources{Devices: each(r.GetDevices(), toDeviceRule)}
	if m := r.GetMemory(); m != nil {
		out.Memory = &specs.LinuxMemory{
			Limit: set(m.GetLimit()), Reservation: set(m.GetReservation()), Swap: set(m.GetSwap()),
			KernelTCP: set(m.GetKernelTCP()), Swappiness: set(m.GetSwappiness()), DisableOOMKiller: set(m.GetDisableOOMKiller()),
		}
	}
	if c := r.GetCPU(); c != nil {
		out.CPU = &specs.LinuxCPU{
			Shares: set(c.GetShares()), Quota: set(c.GetQuota()), Period: set(c.GetPeriod()),
			RealtimeRuntime: set(c.GetRealtimeRuntime()), RealtimePeriod: set(c.GetRealtimePeriod()),
			Cpus: c.GetCpus(), Mems: c.GetMems(),
		}
	}
	if p := r.GetPids(); p != nil {
		out.Pids = &specs.LinuxPids{Limit: set(p.GetLimit())}
	}
	if b := r.GetBlockIO(); b != nil {
		out.BlockIO = toBlockIO(b)
	}
	out.HugepageLimits = each(r.GetHugepageLimits(), func(h *pb.LinuxHugepageLimit) specs.LinuxHugepageLimit {
		return specs.LinuxHugepageLimit{Pagesize: h.GetPagesize(), Limit: h.GetLimit()}
	})
	if n := r.GetNetwork(); n != nil {
		out.Network = &specs.LinuxNetwork{
			ClassID: set(n.GetClassID()),
			Priorities: each(n.GetPriorities(), func(p *pb.LinuxInterfacePriority) specs.LinuxInterfacePriority {
				return specs.LinuxInterfacePriority{Name: p.GetName(), Priority: p.GetPriority()}
			}),
		}
	}
	return out
}

// toDeviceRule keeps a wildcard a wildcard: on the wire it is -1, or major 0,
// which no device has.
func toDeviceRule(d *pb.LinuxDeviceCgroup) specs.LinuxDeviceCgroup {
	out := specs.LinuxDeviceCgroup{Allow: d.GetAllow(), Type: d.GetType(), Access: d.GetAccess()}
	if major := d.GetMajor(); major > 0 {
		out.Major = &major
		if minor := d.GetMinor(); minor >= 0 {
			out.Minor = &minor
		}
	}
	return out
}

func toBlockIO(b *pb.LinuxBlockIO) *specs.LinuxBlockIO {
	weight := func(w uint32) *uint16 { return set(uint16(min(w, 1<<16-1))) }
	throttle := func(d *pb.LinuxThrottleDevice) specs.LinuxThrottleDevice {
		var out specs.LinuxThrottleDevice
		out.Major, out.Minor, out.Rate = d.GetMajor(), d.GetMinor(), d.GetRate()
		return out
	}
	return &specs.LinuxBlockIO{
		Weight:     weight(b.GetWeight()),
		LeafWeight: weight(b.GetLeafWeight()),
		WeightDevice: each(b.GetWeightDevice(), func(d *pb.LinuxWeightDevice) specs.LinuxWeightDevice {
			var out specs.LinuxWeightDevice
			out.Major, out.Minor = d.GetMajor(), d.GetMinor()
			out.Weight, out.LeafWeight = weight(d.GetWeight()), weight(d.GetLeafWeight())
			return out
		}),
		ThrottleReadBpsDevice:   each(b.GetThrottleReadBpsDevice(), throttle),
		ThrottleWriteBpsDevice:  each(b.GetThrottleWriteBpsDevice(), throttle),
		ThrottleReadIOPSDevice:  each(b.GetThrottleReadIOPSDevice(), throttle),
		ThrottleWriteIOPSDevice: each(b.GetThrottleWriteIOPSDevice(), throttle),
	}
}
