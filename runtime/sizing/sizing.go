// Package sizing says how large a VM should be for the limits of the containers
// in it. It is a pure function: nothing is asked, kept or changed, and any
// goroutine may call it. Who makes a VM larger is for the caller, and a VM never
// becomes smaller.
package sizing

import (
	"math"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Size is that of a VM.
type Size struct {
	VCPUs     int
	MemoryMiB int
}

// Policy is what the configuration says of the size of a VM.
type Policy struct {
	Base Size // of a VM when it boots
	Max  Size // what it can become; at least Base
	// OverheadMiB is what the guest needs besides what its containers may use:
	// kernel, agent, page tables. A 64th of what is added, in which the kernel
	// describes its pages, comes on top.
	OverheadMiB int
	// BlockMiB is the unit in which memory is added, as the guest's kernel
	// says (mem_block_size_bytes); at least 1.
	BlockMiB int
}

// defaultPeriod is that of cpu.max, in microseconds, where none is given
// (Documentation/admin-guide/cgroup-v2.rst).
const defaultPeriod = 100_000

// Want returns the size that the sum of the containers' limits asks for, within
// the policy: at least its Base, and at most its Max. A container without a
// limit asks for nothing: it shares what is there. nil stands for one without
// any limit.
func (p Policy) Want(containers []*pb.LinuxResources) Size {
	var cpus float64
	var bytes uint64
	for _, c := range containers {
		if quota := c.GetCPU().GetQuota(); quota > 0 {
			period := c.GetCPU().GetPeriod()
			if period == 0 {
				period = defaultPeriod
			}
			cpus += float64(quota) / float64(period)
		}
		if limit := c.GetMemory().GetLimit(); limit > 0 {
			bytes = sum(bytes, uint64(limit))
		}
		// They are beside what the limit of memory counts (Documentation/admin-guide/
		// cgroup-v2.rst, memory_hugetlb_accounting).
		for _, pages := range c.GetHugepageLimits() {
			bytes = sum(bytes, pages.GetLimit())
		}
	}
	want := p.Base
	want.VCPUs = max(want.VCPUs, int(math.Ceil(min(cpus, float64(p.Max.VCPUs)))))
	if bytes > 0 {
		want.MemoryMiB = max(want.MemoryMiB, p.memory(bytes))
	}
	return Size{VCPUs: min(want.VCPUs, p.Max.VCPUs), MemoryMiB: min(want.MemoryMiB, p.Max.MemoryMiB)}
}

// sum is at most what can be counted: containerd writes 2^63-1 for no limit.
func sum(a, b uint64) uint64 {
	if a+b < a {
		return math.MaxUint64
	}
	return a + b
}

// memory is the size of a VM whose containers may use so many bytes: Base and
// whole blocks, as the guest can take no others.
func (p Policy) memory(bytes uint64) int {
	const mib = 1 << 20
	most := uint64(p.Max.MemoryMiB)
	need := min(bytes/mib+(bytes%mib+mib-1)/mib, most) + uint64(p.OverheadMiB)
	if need <= uint64(p.Base.MemoryMiB) {
		return p.Base.MemoryMiB
	}
	block := uint64(max(p.BlockMiB, 1))
	more := need - uint64(p.Base.MemoryMiB)
	more += (more + 62) / 63 // of 64 pages, 63 can be used
	more = (more + block - 1) / block * block
	for more > 0 && uint64(p.Base.MemoryMiB)+more > most {
		more -= block
	}
	return p.Base.MemoryMiB + int(more)
}
