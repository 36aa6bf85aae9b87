package virtiofs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountAll gives the calling thread a mount namespace of its own, in which
// cfg.Dir has the entries and nothing else. The thread must run nothing else
// afterwards.
func mountAll(cfg Config) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	// What happens here does not reach the host. What the host unmounts goes here
	// too, so that nothing of it is kept busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate the mount namespace from the host's: %w", err)
	}
	if err := mountRoot(cfg.Dir); err != nil {
		return fmt.Errorf("mount the root of what is shared: %w", err)
	}
	for _, e := range cfg.Entries {
		if err := mountEntry(filepath.Join(cfg.Dir, e.Name), e); err != nil {
			return fmt.Errorf("mount %s, %s of what is shared: %w", e.Tree.Name(), e.Name, err)
		}
	}
	if err := hide(cfg.Dir, cfg.Hide); err != nil {
		return err
	}
	// The guest could fill the host's memory with files otherwise.
	if err := unix.MountSetattr(unix.AT_FDCWD, cfg.Dir, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the root of what is shared read-only: %w", err)
	}
	return nil
}

// mountRoot mounts an empty filesystem at dir.
func mountRoot(dir string) error {
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC)
	options := fmt.Sprintf("mode=0755,size=1M,nr_inodes=%d", maxEntries+16)
	if err := unix.Mount("erofsvm", dir, "tmpfs", flags, options); err != nil {
		return err
	}
	return unix.Mount("", dir, "", unix.MS_PRIVATE, "")
}

// mountEntry attaches a tree at a path that is made for it, cut off from the
// host: before that, an unmount here could be one there.
func mountEntry(path string, e Entry) error {
	tree := int(e.Tree.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.Mkdir(path, 0o755)
	case unix.S_IFREG:
		err = os.WriteFile(path, nil, 0o644)
	default:
		err = fmt.Errorf("it is neither a file nor a directory, its mode is %#o", st.Mode)
	}
	if err != nil {
		return err
	}
	for _, attr := range attributes(e) {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("mount_setattr: %w", err)
		}
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// attributes are set one after the other, on all mounts of a tree. What a tree is
// to receive from the host must be shared with the daemon, which makes a further
// namespace for itself, and be a slave of the host's.
func attributes(e Entry) []unix.MountAttr {
	attrs := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if e.ReadOnly {
		attrs.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if !e.Receive {
		return []unix.MountAttr{attrs}
	}
	attrs.Propagation = unix.MS_SLAVE
	return []unix.MountAttr{attrs, {Propagation: unix.MS_SHARED}}
}

// hide takes off what is mounted below dir of the types, the last mount first.
// What lies below such a mount goes with it.
func hide(dir string, types []string) error {
	table, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	defer table.Close()
	mounts, err := mountinfo.GetMountsFromReader(table, mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("read the mounts below %s: %w", dir, err)
	}
	for _, m := range slices.Backward(mounts) {
		if m.Mountpoint == dir || !slices.Contains(types, m.FSType) {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("hide the %s at %s: %w", m.FSType, m.Mountpoint, err)
		}
	}
	return nil
}
