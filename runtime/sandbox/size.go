package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/runtime/annotations"
	"github.com/erofsvm/erofsvm/runtime/sizing"
)

const (
	// overheadMiB is what a guest has taken of its memory before its first
	// container runs, and a little more: of 512 MiB its kernel keeps 47 for
	// itself, and 43 hold the agent and the files it booted from.
	overheadMiB = 128

	// What a VM can become if nobody says so. Each processor that could come
	// costs the guest memory and its boot time; what is more than the address
	// lines of a small host's processor reach, QEMU refuses.
	defaultMaxVCPUs     = 16
	defaultMaxMemoryMiB = 256 << 10
)

// size is how large a VM is. The one that makes it larger holds turn, a channel
// so that no lock is held over a wait. policy is final once the machine is ready.
type size struct {
	turn   chan struct{}
	policy sizing.Policy
	now    sizing.Size
}

// base is the size of a VM that boots, and most what it can become.
func base(h configs.Hypervisor) sizing.Size {
	return sizing.Size{VCPUs: h.VCPUs, MemoryMiB: h.MemoryMiB}
}

func most(h configs.Hypervisor, host sizing.Size) sizing.Size {
	size := sizing.Size{VCPUs: h.MaxVCPUs, MemoryMiB: h.MaxMemoryMiB}
	if size.VCPUs == 0 {
		size.VCPUs = max(h.VCPUs, min(host.VCPUs, defaultMaxVCPUs))
	}
	if size.MemoryMiB == 0 {
		size.MemoryMiB = max(h.MemoryMiB, min(host.MemoryMiB, defaultMaxMemoryMiB))
	}
	return size
}

// configFor is the configuration of a VM for a pod with these annotations, which
// cannot ask for more than the VM could become, nor for more than the host has.
func configFor(c configs.Config, pod map[string]string) (configs.Config, error) {
	host := hostSize()
	allowed := most(c.Hypervisor, host)
	allowed.VCPUs = min(allowed.VCPUs, max(c.Hypervisor.VCPUs, host.VCPUs))
	allowed.MemoryMiB = min(allowed.MemoryMiB, max(c.Hypervisor.MemoryMiB, host.MemoryMiB))
	return annotations.Apply(c, allowed, pod)
}

// hostSize is what there is for all VMs together. Memory that is not known is
// none.
func hostSize() sizing.Size {
	host := sizing.Size{VCPUs: runtime.NumCPU()}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		host.MemoryMiB = int(info.Totalram * uint64(info.Unit) >> 20)
	}
	return host
}

// measure is called once, while the machine comes up, with the size in bytes of
// the blocks in which the guest takes memory, 0 if it takes none.
func (m *machine) measure(block uint64) {
	vcpus, mib := m.vm.Limits()
	if have := m.cfg.Hypervisor.MemoryMiB; mib > have && (block == 0 || hypervisor.MemoryBlockMiB<<20%block != 0) {
		m.log.Warnf("the guest stays at %d MiB: its kernel takes memory in blocks of %d bytes, and it would come in blocks of %d MiB",
			have, block, hypervisor.MemoryBlockMiB)
		mib = have
	}
	m.size.now = base(m.cfg.Hypervisor)
	m.size.policy = sizing.Policy{
		Base:        m.size.now,
		Max:         sizing.Size{VCPUs: max(vcpus, m.size.now.VCPUs), MemoryMiB: max(mib, m.size.now.MemoryMiB)},
		OverheadMiB: overheadMiB, BlockMiB: hypervisor.MemoryBlockMiB,
	}
}

// grow makes the VM as large as the limits of its containers ask for, as far as
// it can become, and never smaller. After an error some of it may have come; the
// next call asks for the rest.
func (s *Sandbox) grow(ctx context.Context, m *machine) error {
	select {
	case m.size.turn <- struct{}{}:
		defer func() { <-m.size.turn }()
	case <-ctx.Done():
		return fmt.Errorf("wait until the virtual machine has grown for another container: %w", context.Cause(ctx))
	}
	had := m.size.now
	want := m.size.policy.Want(s.limits())
	if want.VCPUs <= had.VCPUs && want.MemoryMiB <= had.MemoryMiB {
		return nil
	}
	begun := time.Now()
	defer m.trace.phase("grow", begun)
	err := m.plug(ctx, want)
	if had != m.size.now {
		m.log.Infof("virtual machine grown from %d to %d processors and from %d to %d MiB",
			had.VCPUs, m.size.now.VCPUs, had.MemoryMiB, m.size.now.MemoryMiB)
	}
	return err
}

// plug has the hypervisor add what is missing, and the agent bring it online. The
// caller has the turn.
func (m *machine) plug(ctx context.Context, want sizing.Size) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Plug.Std())
	defer cancel()
	had := m.size.now
	var errs []error
	if want.MemoryMiB > had.MemoryMiB {
		// Less than it has, as long as the guest has not taken it: then it is
		// asked for again.
		mib, err := m.vm.AddMemory(ctx, want.MemoryMiB)
		if err == nil {
			m.size.now.MemoryMiB = mib
		}
		errs = append(errs, err)
	}
	if want.VCPUs > had.VCPUs {
		vcpus, err := m.vm.AddCPUs(ctx, want.VCPUs)
		m.size.now.VCPUs = max(vcpus, had.VCPUs)
		errs = append(errs, err)
	}
	if vcpus, memory := m.size.now.VCPUs-had.VCPUs, m.size.now.MemoryMiB > had.MemoryMiB; vcpus > 0 || memory {
		errs = append(errs, m.agent.OnlineCPUMem(ctx, vcpus, memory))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("make the virtual machine larger (deadlines.plug = %s): %w", m.cfg.Deadlines.Plug.Std(), err)
	}
	return nil
}

// limits are those of the containers that have not ended. They count from the
// moment in which a container is admitted.
func (s *Sandbox) limits() []*pb.LinuxResources {
	s.mu.Lock()
	var all []*container
	for _, c := range s.containers {
		all = append(all, c)
	}
	s.mu.Unlock()
	var limits []*pb.LinuxResources
	for _, c := range all {
		c.mu.Lock()
		if c.init.state < Stopped {
			limits = append(limits, c.limits)
		}
		c.mu.Unlock()
	}
	return limits
}

// changeLimits notes what an update changes, and returns what takes it back.
func (c *container) changeLimits(update *pb.LinuxResources) (undo func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.limits
	after := merged(before, update)
	c.limits = after
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.limits == after { // and no other update came
			c.limits = before
		}
	}
}

// merged are the limits that decide about the size of a VM, after an update: what
// is 0 in it stays as it is.
func merged(before, update *pb.LinuxResources) *pb.LinuxResources {
	return &pb.LinuxResources{
		CPU: &pb.LinuxCPU{
			Quota:  cmp.Or(update.GetCPU().GetQuota(), before.GetCPU().GetQuota()),
			Period: cmp.Or(update.GetCPU().GetPeriod(), before.GetCPU().GetPeriod()),
		},
		Memory: &pb.LinuxMemory{Limit: cmp.Or(update.GetMemory().GetLimit(), before.GetMemory().GetLimit())},
		// The guest has reserved them when the container was created.
		HugepageLimits: before.GetHugepageLimits(),
	}
}
