package storage

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
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

// superOptions are the options of a filesystem that pass. Everything else is
// refused: options can name other devices (erofs device=, ext4 journal_path=),
// stop the kernel (errors=panic) or weaken what the layer is trusted for.
// Documentation/filesystems/{ext4,erofs,tmpfs} of the kernel describe them, and hugetlbfs
// Documentation/admin-guide/mm/hugetlbpage.rst.
var superOptions = sync.OnceValue(func() map[string]*regexp.Regexp {
	return map[string]*regexp.Regexp{
		"ext4": regexp.MustCompile(`^(sync|async|dirsync|lazytime|nolazytime|data=(ordered|writeback|journal)|` +
			`commit=[0-9]{1,4}|barrier|nobarrier|barrier=[01]|discard|nodiscard|delalloc|nodelalloc|` +
			`errors=(remount-ro|continue)|user_xattr|nouser_xattr|acl|noacl|init_itable|noinit_itable|init_itable=[0-9]{1,4})$`),
		"erofs": regexp.MustCompile(`^(lazytime|nolazytime|user_xattr|nouser_xattr|acl|noacl|cache_strategy=(disabled|readahead|readaround))$`),
		// How large it is the pages bound that are reserved.
		"hugetlbfs": regexp.MustCompile(`^(pagesize=[1-9][0-9]{0,11})$`),
		"tmpfs":     regexp.MustCompile(`^(size=[1-9][0-9]{0,17}|nr_inodes=[1-9][0-9]{0,17}|mode=[0-7]{3,4}|inode64)$`),
	}
})

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
		pass := superOptions()[fstype]
		if pass == nil || !pass.MatchString(o) {
			return Options{}, fmt.Errorf("option %.64q is not allowed for %.32q: %w", o, fstype, errdefs.ErrInvalidArgument)
		}
		parsed.super = append(parsed.super, o)
	}
	return parsed, nil
}

// split separates an option for fsconfig(2); ok says whether it has a value.
func split(option string) (key, value string, ok bool) { return strings.Cut(option, "=") }
