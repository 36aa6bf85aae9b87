// Package boot turns a freshly started kernel into a system that containers can
// run in: filesystems, modules, loopback, orphans.
//
// It is for PID 1 only, and for its start: Root and Mounts change the root
// directory of the whole process and must run before anything else opens a file.
// ReapOrphans then keeps the main thread for good. Nothing here knows of the
// protocol, opens a connection, or draws a random number.
package boot

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mount is one of the filesystems that every system has.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

var mounts = []mount{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=620,gid=5,ptmxmode=666"},
	{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	{"tmp", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	// libcontainer hands the controllers down to the containers itself.
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate"},
}

// Root makes the initramfs a root directory that pivot_root(2) can leave.
//
// The kernel refuses pivot_root while the root is rootfs itself, which has no
// parent mount (fs/namespace.c, path_pivot_root). So the same tree is mounted a
// second time, on top of the first, and made the root: nothing is copied.
func Root() error {
	const twin = "/.root"
	if err := os.Mkdir(twin, 0o700); err != nil {
		return fmt.Errorf("second root: %w", err)
	}
	if err := unix.Mount("/", twin, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("second root: bind: %w", err)
	}
	if err := unix.Chdir(twin); err != nil {
		return fmt.Errorf("second root: chdir: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("second root: move: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("second root: chroot: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("second root: chdir: %w", err)
	}
	return os.Remove(twin)
}

// Mounts mounts what every system has. A filesystem that the kernel mounted
// already, as it may do with devtmpfs, is left.
//
// All mounts are shared, as init systems make them: a container that is being
// created has, until it changes its root directory, a copy of every mount, and
// an unmount must reach that too. Otherwise the layers of another container stay
// mounted there, unwritten data and all, when their disks are pulled.
func Mounts() error {
	unix.Umask(0o022)
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts with the namespaces of containers: %w", err)
	}
	return devLinks()
}

// devLinks makes the names in /dev that are no devices.
func devLinks() error {
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, name); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}
