package container

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/container/cgstat"
)

// stats returns what the container has used, as docs/stats-wire.md has it. Its
// cgroup stays until the container is removed, so that is possible after the end
// of its processes as well.
func (c *Container) stats() (*pb.StatsContainerResponse, error) {
	if state := c.State(); state == Creating {
		return nil, fmt.Errorf("container %s is %s: %w", c.id, state, errdefs.ErrFailedPrecondition)
	}
	group, err := cgstat.Read(c.cgroup)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("container %s is being removed: %w", c.id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("statistics of container %s: %w", c.id, err)
	}
	network, err := c.network()
	if err != nil {
		return nil, fmt.Errorf("statistics of container %s: %w", c.id, err)
	}
	return &pb.StatsContainerResponse{CgroupStats: group, NetworkStats: network}, nil
}

// network returns the interfaces of the container, which are the guest's unless
// it has a network of its own. That one ends with the process.
func (c *Container) network() ([]*pb.NetworkStats, error) {
	process := "self"
	if c.ownNet {
		pid, err := c.init.lib.Pid()
		if err != nil || c.init.hasExited() {
			return nil, nil
		}
		process = strconv.Itoa(pid)
	}
	dev, err := os.Open("/proc/" + process + "/net/dev")
	if err != nil {
		if c.ownNet && c.init.hasExited() {
			return nil, nil
		}
		return nil, err
	}
	defer dev.Close()
	interfaces, err := cgstat.Network(dev)
	if c.ownNet && c.init.hasExited() {
		return nil, nil // it may have been another process of that number
	}
	return interfaces, err
}
