package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// alone waits until nobody else changes the cgroup of the container. What it
// returns lets the next one in.
func (c *Container) alone(ctx context.Context) (done func(), err error) {
	select {
	case <-c.changing:
		return func() { c.changing <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another change of container %s: %w", c.id, ctx.Err())
	}
}

// pause stops every process of the container where it is.
//
// An exec on its way is awaited first: frozen half-way it would hold the lock of
// libcontainer that resume needs.
func (c *Container) pause(ctx context.Context) error {
	done, err := c.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := c.to(Pausing); err != nil {
		return err
	}
	if err := c.awaitStarting(ctx); err != nil {
		c.toFrom(Pausing, Running)
		return err
	}
	if err := c.lib.Pause(); err != nil {
		// Some processes may be frozen by now.
		err = errors.Join(err, os.WriteFile(filepath.Join(c.cgroup, "cgroup.freeze"), []byte("0"), 0))
		c.toFrom(Pausing, Running)
		return fmt.Errorf("pause container %s: %w", c.id, err)
	}
	return c.arrive(Pausing, Paused)
}

// resume lets the processes go on.
func (c *Container) resume(ctx context.Context) error {
	done, err := c.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := c.to(Resuming); err != nil {
		return err
	}
	if err := c.lib.Resume(); err != nil {
		c.toFrom(Resuming, Paused)
		return fmt.Errorf("resume container %s: %w", c.id, err)
	}
	return c.arrive(Resuming, Running)
}

// arrive is toFrom for a call that has failed if the container ended meanwhile.
func (c *Container) arrive(here, next State) error {
	c.toFrom(here, next)
	if state := c.State(); state != next {
		return fmt.Errorf("container %s is %s and not %s: its process has ended: %w", c.id, state, next, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// update changes limits of a container that has a process.
func (c *Container) update(ctx context.Context, r *pb.LinuxResources) error {
	resources := toResources(r)
	if resources == nil {
		return fmt.Errorf("no resources: %w", errdefs.ErrInvalidArgument)
	}
	done, err := c.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	if state := c.State(); !slices.Contains([]State{Created, Starting, Running, Paused}, state) {
		return fmt.Errorf("container %s is %s and its limits cannot change: %w", c.id, state, errdefs.ErrFailedPrecondition)
	}
	// A copy all the way down: if the kernel refuses one value, libcontainer
	// goes back to what it has.
	config := c.lib.Config()
	group := *config.Cgroups
	limits := *group.Resources
	merge(&limits, resources)
	group.Resources = &limits
	config.Cgroups = &group
	if err := c.lib.Set(config); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
			err = fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
		}
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return nil
}

// merge puts what is set in r into the limits of a container, as runc has it:
// what is not set stays. Rules for devices are passed over, since hosts send
// them along, unchanged, with every update.
func merge(into *cgroups.Resources, r *specs.LinuxResources) {
	if m := r.Memory; m != nil {
		if m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
			into.MemorySwap = 0 // a limit of both is refused without one of memory
		}
		override(&into.Memory, m.Limit)
		override(&into.MemoryReservation, m.Reservation)
		override(&into.MemorySwap, m.Swap)
	}
	if cpu := r.CPU; cpu != nil {
		if cpu.Shares != nil {
			into.CpuShares, into.CpuWeight = *cpu.Shares, cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
		}
		override(&into.CpuQuota, cpu.Quota)
		override(&into.CpuPeriod, cpu.Period)
		override(&into.CpusetCpus, set(cpu.Cpus))
		override(&into.CpusetMems, set(cpu.Mems))
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		into.PidsLimit = r.Pids.Limit
	}
	if b := r.BlockIO; b != nil {
		override(&into.BlkioWeight, b.Weight)
		override(&into.BlkioLeafWeight, b.LeafWeight)
		for _, d := range b.WeightDevice {
			new := cgroups.NewWeightDevice(d.Major, d.Minor, value(d.Weight), value(d.LeafWeight))
			into.BlkioWeightDevice = upsert(into.BlkioWeightDevice, new, func(w *cgroups.WeightDevice) bool { return w.Major == d.Major && w.Minor == d.Minor })
		}
		throttle(&into.BlkioThrottleReadBpsDevice, b.ThrottleReadBpsDevice)
		throttle(&into.BlkioThrottleWriteBpsDevice, b.ThrottleWriteBpsDevice)
		throttle(&into.BlkioThrottleReadIOPSDevice, b.ThrottleReadIOPSDevice)
		throttle(&into.BlkioThrottleWriteIOPSDevice, b.ThrottleWriteIOPSDevice)
	}
	for _, h := range r.HugepageLimits {
		into.HugetlbLimit = upsert(into.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit},
			func(l *cgroups.HugepageLimit) bool { return l.Pagesize == h.Pagesize })
	}
}

func throttle(into *[]*cgroups.ThrottleDevice, devices []specs.LinuxThrottleDevice) {
	for _, d := range devices {
		*into = upsert(*into, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate),
			func(t *cgroups.ThrottleDevice) bool { return t.Major == d.Major && t.Minor == d.Minor })
	}
}

// upsert returns a list with one in place of what is the same, or at the end.
// The list that comes in stays as it is.
func upsert[T any](list []T, one T, same func(T) bool) []T {
	list = slices.Clone(list)
	if i := slices.IndexFunc(list, same); i >= 0 {
		list[i] = one
		return list
	}
	return append(list, one)
}

func override[T any](into *T, v *T) {
	if v != nil {
		*into = *v
	}
}

func value[T any](v *T) (zero T) {
	if v == nil {
		return zero
	}
	return *v
}
