package container

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/storage"
	"github.com/erofsvm/erofsvm/guest/uevent"
)

// maxDisks bounds the block devices of one container.
const maxDisks = 128

// number is that of a block device.
type number struct{ major, minor int64 }

// giveDisks makes the block devices of a specification, which have the host's
// numbers there, those of the disks that stand for them here. The rules for the
// host's numbers become rules for the guest's: as they are they would be about other
// disks.
func giveDisks(ctx context.Context, spec *specs.Spec, devices []*pb.Device, system storage.System) error {
	if len(devices) > maxDisks {
		return fmt.Errorf("%d devices, at most %d: %w", len(devices), maxDisks, errdefs.ErrInvalidArgument)
	}
	numbers := map[number]number{} // of the guest, by the host's
	taken := map[*specs.LinuxDevice]bool{}
	for _, d := range devices {
		node, err := blockDevice(spec, d)
		if err != nil {
			return fmt.Errorf("device %.128q: %w", d.GetContainerPath(), err)
		}
		if taken[node] {
			return fmt.Errorf("device %.128q is two disks: %w", d.GetContainerPath(), errdefs.ErrInvalidArgument)
		}
		taken[node] = true
		here, err := find(ctx, d, system)
		if err != nil {
			return fmt.Errorf("device %s: %w", node.Path, err)
		}
		numbers[number{node.Major, node.Minor}] = here
		node.Major, node.Minor = here.major, here.minor
	}
	if spec.Linux.Resources == nil {
		return nil
	}
	for i := range spec.Linux.Resources.Devices {
		rule := &spec.Linux.Resources.Devices[i]
		if rule.Type != "b" || rule.Major == nil || rule.Minor == nil {
			continue
		}
		if here, ok := numbers[number{*rule.Major, *rule.Minor}]; ok {
			rule.Major, rule.Minor = &here.major, &here.minor
		}
	}
	return nil
}

// blockDevice is the node of the specification that a device is for.
func blockDevice(spec *specs.Spec, d *pb.Device) (*specs.LinuxDevice, error) {
	if d.GetVmPath() != "" || len(d.GetOptions()) > 0 {
		return nil, fmt.Errorf("vm_path and options mean nothing for a disk: %w", errdefs.ErrNotImplemented)
	}
	for i := range spec.Linux.Devices {
		if node := &spec.Linux.Devices[i]; node.Path == d.GetContainerPath() && node.Type == "b" {
			return node, nil
		}
	}
	return nil, fmt.Errorf("OCI.Linux.Devices has no block device of that path: %w", errdefs.ErrInvalidArgument)
}

// find waits for the disk and returns its number.
func find(ctx context.Context, d *pb.Device, system storage.System) (number, error) {
	disk := uevent.Disk{Driver: uevent.Driver(d.GetType()), Source: d.GetId()}
	if err := disk.Check(); err != nil {
		return number{}, err
	}
	if disk.Driver == uevent.SCSI {
		if err := system.Modules.Load(ctx, layout.StageSCSI); err != nil {
			return number{}, fmt.Errorf("prepare for disk %s: %w", disk, err)
		}
	}
	node, err := system.Disks.Find(ctx, disk)
	if err != nil {
		return number{}, err
	}
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		return number{}, fmt.Errorf("disk %s at %s: %w", disk, node, err)
	}
	return number{int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))}, nil
}
