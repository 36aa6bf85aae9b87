package sandbox

import (
	"context"
	"fmt"
	"os"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/runtime/blockdev"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
)

// hostDevices is where block devices are looked up.
var hostDevices = blockdev.Host{Sys: "/sys", Dev: "/dev"}

// attachBlocks gives a container the block devices of the host that its spec names,
// as disks that go with it, and returns what the agent has to know of them.
func (m *machine) attachBlocks(ctx context.Context, c *container, blocks []guestspec.Block) ([]*pb.Device, error) {
	var devices []*pb.Device
	for i, b := range blocks {
		at, err := m.attachBlock(ctx, c, fmt.Sprintf("c%d-block-%d", c.serial, i), b)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", b.Path, err)
		}
		devices = append(devices, &pb.Device{Id: at.source, Type: at.driver, ContainerPath: b.Path})
	}
	return devices, nil
}

func (m *machine) attachBlock(ctx context.Context, c *container, id string, b guestspec.Block) (place, error) {
	device, err := hostDevices.Open(uint32(b.Major), uint32(b.Minor), b.ReadOnly)
	if err != nil {
		return place{}, err
	}
	defer device.Close()
	c.disks = append(c.disks, attached{id: id}) // an error may leave it half there
	disk := &c.disks[len(c.disks)-1]
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Plug.Std())
	defer cancel()
	at, err := m.vm.Attach(ctx, hypervisor.Disk{
		ID: id, Driver: hypervisor.DriverRaw, Path: device.Name(), ReadOnly: b.ReadOnly, Files: []*os.File{device},
	})
	disk.place = placeOf(at)
	return disk.place, err
}
