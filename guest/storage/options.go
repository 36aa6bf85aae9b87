package storage

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/token"
)

// Options are mount options, sorted by how the kernel is told of them.
type Options struct {
	attrs int      // MOUNT_ATTR_*, of the mount
	super []string // "key" or "key=value", of the filesystem
}

// ReadOnly reports whether the mount is read-only.
func (o Options) ReadOnly() bool { return o.attrs&unix.MOUNT_ATTR_RDONLY != 0 }

// SetReadOnly makes mount and filesystem read-only.
func (o *Options) SetReadOnly() {
	if !o.ReadOnly() {
		o.attrs |= unix.MOUNT_ATTR_RDONLY
		o.super = append(o.super, "ro")
	}
}

// mountAttrs are options of the mount itself: what to clear, what to set.
var mountAttrs = map[string]struct{ clear, set int }{
	"suid":        {unix.MOUNT_ATTR_NOSUID, 0},
	"nosuid":      {0, unix.MOUNT_ATTR_NOSUID},
	"dev":         {unix.MOUNT_ATTR_NODEV, 0},
	"nodev":       {0, unix.MOUNT_ATTR_NODEV},
	"exec":        {unix.MOUNT_ATTR_NOEXEC, 0},
	"noexec":      {0, unix.MOUNT_ATTR_NOEXEC},
	"relatime":    {unix.MOUNT_ATTR__ATIME, unix.MOUNT_ATTR_RELATIME},
	"norelatime":  {0, 0}, // the kernel's default is relatime whatever this says, mount(8)
	"noatime":     {unix.MOUNT_ATTR__ATIME, unix.MOUNT_ATTR_NOATIME},
	"strictatime": {unix.MOUNT_ATTR__ATIME, unix.MOUNT_ATTR_STRICTATIME},
	"diratime":    {unix.MOUNT_ATTR_NODIRATIME, 0},
	"nodiratime":  {0, unix.MOUNT_ATTR_NODIRATIME},
	"defaults":    {0, 0},
}

// superOption says that an option of a filesystem passes. Everything else is
// refused: options can name other devices (erofs device=, ext4 journal_path=),
// stop the kernel (errors=panic) or weaken what the layer is trusted for.
// Documentation/filesystems/{ext4,erofs,tmpfs} of the kernel describe them, and hugetlbfs
// Documentation/admin-guide/mm/hugetlbpage.rst.
func superOption(fstype, option string) bool {
	key, value, valued := strings.Cut(option, "=")
	switch fstype {
	case "ext4":
		if !valued {
			switch key {
			case "sync", "async", "dirsync", "lazytime", "nolazytime", "barrier", "nobarrier", "discard", "nodiscard",
				"delalloc", "nodelalloc", "user_xattr", "nouser_xattr", "acl", "noacl", "init_itable", "noinit_itable":
				return true
			}
			return false
		}
		switch key {
		case "data":
			return value == "ordered" || value == "writeback" || value == "journal"
		case "errors":
			return value == "remount-ro" || value == "continue"
		case "barrier":
			return value == "0" || value == "1"
		case "commit", "init_itable":
			return token.Of(value, 1, 4, token.Digit)
		}
	case "erofs":
		if !valued {
			switch key {
			case "lazytime", "nolazytime", "user_xattr", "nouser_xattr", "acl", "noacl":
				return true
			}
			return false
		}
		return key == "cache_strategy" && (value == "disabled" || value == "readahead" || value == "readaround")
	case "hugetlbfs":
		// How large it is the pages bound that are reserved.
		return key == "pagesize" && token.Number(value, 12)
	case "tmpfs":
		switch key {
		case "inode64":
			return !valued
		case "size", "nr_inodes":
			return token.Number(value, 18)
		case "mode":
			return token.Of(value, 3, 4, token.Octal)
		}
	}
	return false
}

// ParseOptions holds the options of a mount of type fstype to what may pass.
func ParseOptions(fstype string, options []string) (Options, error) {
	var parsed Options
	for _, o := range options {
		switch {
		case o == "ro":
			parsed.SetReadOnly()
			continue
		case o == "rw":
			if parsed.ReadOnly() {
				return Options{}, fmt.Errorf("options ro and rw together: %w", errdefs.ErrInvalidArgument)
			}
			continue
		}
		if attr, ok := mountAttrs[o]; ok {
			parsed.attrs = parsed.attrs&^attr.clear | attr.set
			continue
		}
		if !superOption(fstype, o) {
			return Options{}, fmt.Errorf("option %.64q is not allowed for %.32q: %w", o, fstype, errdefs.ErrInvalidArgument)
		}
		parsed.super = append(parsed.super, o)
	}
	return parsed, nil
}

// split separates an option for fsconfig(2); ok says whether it has a value.
func split(option string) (key, value string, ok bool) { return strings.Cut(option, "=") }
