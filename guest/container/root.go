package container

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// root opens the root directory that the first process has. It is not found by
// its path, which does not lead into the mounts that the process made.
func (c *Container) root() (*os.File, error) {
	c.mu.Lock()
	state := c.state
	c.mu.Unlock()
	switch state {
	case Creating, Stopped, Removing:
		return nil, fmt.Errorf("container %s is %s, and its root is there from created to stopped: %w", c.id, state, errdefs.ErrFailedPrecondition)
	}
	pid, err := c.init.lib.Pid()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	// The directory stays that of this process when the number is another's, and
	// the process was still there when it was opened.
	process, err := os.Open(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	defer process.Close()
	if c.init.hasExited() {
		return nil, fmt.Errorf("container %s has ended: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	fd, err := unix.Openat(int(process.Fd()), "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root of container %s: %w", c.id, err)
	}
	return os.NewFile(uintptr(fd), "/"), nil
}
