package storage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/uevent"
)

// driverShare is a filesystem that the host serves, of type shareFS; its source is
// a tag.
const (
	driverShare = "virtio-fs"
	shareFS     = "virtiofs"
)

// shareTag is a tag of what the host plugs in. The device has 36 bytes for it
// (struct virtio_fs_config, include/uapi/linux/virtio_fs.h).
var shareTag = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,35}$`)
})

// SharePath is where files of the host are mounted that are for a container alone.
// It is the source of bind mounts, and no place to remove anything: what is below
// is the host's.
func SharePath(base, id string) string { return filepath.Join(base, id, "share") }

// Share is what a container is shown of the host's files.
type Share struct {
	Tag string
	Options
}

// parseShare holds a storage with driverShare to the rules: at SharePath, with
// options of the mount alone.
func parseShare(base, id string, s *pb.Storage) (*Share, error) {
	switch {
	case s.GetMountPoint() != SharePath(base, id):
		return nil, invalid("mount point %.256q, want %s", s.GetMountPoint(), SharePath(base, id))
	case s.GetFstype() != shareFS:
		return nil, invalid("driver %s with type %.32q, want %s", driverShare, s.GetFstype(), shareFS)
	case !shareTag().MatchString(s.GetSource()):
		return nil, invalid("source %.64q is no tag", s.GetSource())
	case len(s.GetDriverOptions()) > 0 || s.GetFsGroup() != nil || s.GetShared():
		return nil, fmt.Errorf("driver_options, fs_group and shared mean nothing for a share: %w", errdefs.ErrNotImplemented)
	}
	options, err := ParseOptions(shareFS, s.GetOptions())
	if err != nil {
		return nil, err
	}
	// Numbers of the host's devices mean others in the guest.
	options.attrs |= unix.MOUNT_ATTR_NODEV
	return &Share{Tag: s.GetSource(), Options: options}, nil
}

// mountShare mounts the share, if there is one.
func (m *Mounted) mountShare(ctx context.Context, s *Share, at string, modules Modules) error {
	if s == nil {
		return nil
	}
	if err := modules.Load(ctx, layout.StageVirtioFS); err != nil {
		return fmt.Errorf("prepare for share %s: %w", s.Tag, err)
	}
	if err := m.mkdir(at); err != nil {
		return err
	}
	if err := s.mount(ctx, at); err != nil {
		return fmt.Errorf("share %s: %w", s.Tag, err)
	}
	m.undo.push("unmount "+at, func() error { return unmount(at) })
	return nil
}

// mount waits until the kernel knows the tag, which it has no other word for than
// EINVAL (virtio_fs_get_tree in fs/fuse/virtio_fs.c), and says when a driver has
// taken a device.
func (s *Share) mount(ctx context.Context, at string) error {
	try := func() error { return mountFS(shareFS, append([]string{"source=" + s.Tag}, s.super...), s.attrs, at) }
	err := try()
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	events, err := uevent.Listen()
	if err != nil {
		return fmt.Errorf("listen for the device: %w", err)
	}
	defer events.Close()
	for {
		err := try() // now that nothing is missed
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		if waitErr := nextVirtio(ctx, events); waitErr != nil {
			return fmt.Errorf("wait for the device: %w (the last attempt: %w)", waitErr, err)
		}
	}
}

// nextVirtio returns after the next event that may mean a new device. What it says
// is not believed.
func nextVirtio(ctx context.Context, events *uevent.Events) error {
	for {
		event, err := events.Next(ctx)
		if err != nil || event.Lost || event.Get("SUBSYSTEM") == "virtio" || event.Get("SUBSYSTEM") == "virtiofs" {
			return err
		}
	}
}
