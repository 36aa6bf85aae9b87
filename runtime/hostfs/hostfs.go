// Package hostfs says which filesystems of the host are its kernel's: what they
// show means nothing in a guest, or is the host itself.
//
// It is a table with two ways to ask. It owns nothing and starts nothing, and any
// goroutine may call it.
package hostfs

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// kernels are they, by the number that statfs(2) has for them.
var kernels = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP_SUPER_MAGIC: "cgroup", unix.CGROUP2_SUPER_MAGIC: "cgroup2",
	unix.DEBUGFS_MAGIC: "debugfs", unix.TRACEFS_MAGIC: "tracefs", unix.SECURITYFS_MAGIC: "securityfs", unix.BPF_FS_MAGIC: "bpf",
	unix.DEVPTS_SUPER_MAGIC: "devpts", unix.EFIVARFS_MAGIC: "efivarfs", unix.NSFS_MAGIC: "nsfs",
}

// nameless have no number of their own, or none in package unix.
var nameless = []string{"devtmpfs", "configfs", "mqueue", "pstore", "fusectl", "binfmt_misc", "hugetlbfs", "rpc_pipefs", "selinuxfs"}

// Refuse returns an error of class errdefs.ErrNotImplemented that names source if
// the file behind fd is on such a filesystem.
func Refuse(fd int, source string) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: source, Err: err}
	}
	if name, ok := kernels[int64(st.Type)]; ok {
		return fmt.Errorf("%s is on the %s of the host's kernel, which the guest cannot have: %w", source, name, errdefs.ErrNotImplemented)
	}
	return nil
}

// Types are the names of such filesystems in /proc/<pid>/mountinfo, in order.
func Types() []string {
	return slices.Sorted(slices.Values(append(slices.Collect(maps.Values(kernels)), nameless...)))
}
