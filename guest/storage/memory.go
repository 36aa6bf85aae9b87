package storage

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Memory is a filesystem in the guest's memory that belongs to the pod, and not
// to a container.
type Memory struct {
	target  string
	options Options
}

// ParseMemory reads such a storage, whose mount point is a name in dir.
func ParseMemory(dir string, s *pb.Storage) (Memory, error) {
	target := s.GetMountPoint()
	switch {
	case s.GetDriver() != "ephemeral" || s.GetFstype() != "tmpfs":
		return Memory{}, invalid("storage of the sandbox: driver %.32q with filesystem %.32q, want ephemeral with tmpfs", s.GetDriver(), s.GetFstype())
	case filepath.Dir(target) != dir || CheckID(filepath.Base(target)) != nil:
		return Memory{}, invalid("storage of the sandbox: mount point %.256q is no name in %s", target, dir)
	case len(s.GetDriverOptions()) > 0 || s.GetFsGroup() != nil || s.GetShared():
		return Memory{}, fmt.Errorf("storage of the sandbox %s: driver_options, fs_group and shared are not supported: %w", target, errdefs.ErrNotImplemented)
	}
	options, err := ParseOptions("tmpfs", s.GetOptions())
	if err != nil {
		return Memory{}, fmt.Errorf("storage of the sandbox %s: %w", target, err)
	}
	return Memory{target: target, options: options}, nil
}

// Mount mounts it, at a directory that is made.
func (m Memory) Mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	return mountFS("tmpfs", m.options.super, m.options.attrs, m.target)
}

// Unmount takes it away.
func (m Memory) Unmount() error { return unmount(m.target) }
