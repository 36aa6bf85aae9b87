package sandbox

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/runtime/hostgroup"
	"github.com/erofsvm/erofsvm/runtime/metrics"
)

// cgroupOf is the cgroup of the host that a spec names.
func cgroupOf(spec *specs.Spec) string {
	if spec.Linux == nil {
		return ""
	}
	return spec.Linux.CgroupsPath
}

// enterCgroup makes the sandbox's cgroup and moves this process into it, before it
// starts any other for the sandbox.
func (m *machine) enterCgroup(ctx context.Context) error {
	if m.cfg.Host.Cgroup == configs.CgroupInherit {
		m.cgroup = ""
	}
	if m.cgroup == "" {
		return m.record(nil)
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.QEMU.Std())
	defer cancel()
	group, err := hostgroup.New(m.cgroup)
	if err == nil {
		if err = m.record(nil); err != nil {
			return err
		}
		m.group = group // its Close makes up for an Enter that could not undo itself
		err = group.Enter(ctx, os.Getpid())
	}
	if err != nil {
		return fmt.Errorf("the virtual machine is to be in a cgroup of its own, unless the configuration has host.cgroup = %q: %w", configs.CgroupInherit, err)
	}
	return nil
}

// leaveCgroup removes it, once nothing but this process is in it.
func (m *machine) leaveCgroup(ctx context.Context) error {
	if m.group == nil {
		return nil
	}
	return m.group.Close(ctx)
}

// record notes what the sandbox has on the host. vm is nil until its processes
// exist.
func (m *machine) record(vm *qemu.Record) error {
	return writeRecord(m.bundle, record{Dir: m.dir, VM: vm, NetNS: m.netns.path, Cgroup: m.cgroup})
}

// PodMetrics returns what the pod costs the host, by the cgroup that was made for
// it, or else what its containers use together.
func (s *Sandbox) PodMetrics(ctx context.Context) (*stats.Metrics, error) {
	s.mu.Lock()
	m := s.machine
	s.mu.Unlock()
	if m != nil && m.alive() && m.group != nil {
		used, err := m.group.Usage()
		if err != nil {
			return nil, err
		}
		return metrics.OfHost(used), nil
	}
	used, err := s.PodStats(ctx)
	if err != nil {
		return nil, err
	}
	return metrics.Of(used), nil
}
