// Package uevent waits for a disk to appear in the guest.
//
// It opens a kernel event socket for each wait and closes it before it
// returns; it keeps no state, starts no goroutine that outlives a call, never
// polls and never changes a disk. Finders may be used from any goroutine and at
// the same time.
package uevent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Finder finds disks by the place of their controller on the PCI bus.
type Finder struct {
	// Sys is where sysfs is mounted, Dev where devtmpfs is.
	Sys, Dev string
}

// pciPath is one or more slots in hexadecimal from the root bus to the device,
// each with an optional function, as the agent protocol writes them.
var pciPath = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{2}(\.[0-7])?(/[0-9a-f]{2}(\.[0-7])?){0,7}$`)
})

// kobjectGroup is the multicast group to which the kernel itself sends
// (lib/kobject_uevent.c); group 2 is what udev sends on.
const kobjectGroup = 1

// Find returns the device node of the disk at source, a PCI path such as
// "02/00", and waits for it until ctx ends. It listens before it looks, so a
// disk that appears in between is not missed. A malformed source gives
// errdefs.ErrInvalidArgument, a disk that does not come context.DeadlineExceeded.
func (f Finder) Find(ctx context.Context, source string) (string, error) {
	if !pciPath().MatchString(source) {
		return "", fmt.Errorf("disk %q is not a PCI path like \"02/00\": %w", source, errdefs.ErrInvalidArgument)
	}
	events, err := listen()
	if err != nil {
		return "", fmt.Errorf("listen for the disk %s: %w", source, err)
	}
	defer events.Close()
	// A deadline in the past is how a blocked read is woken when ctx ends.
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	for {
		node, err := f.lookup(source)
		if node != "" || err != nil {
			return node, err
		}
		if err := nextBlockEvent(ctx, events); err != nil {
			return "", fmt.Errorf("wait for the disk at PCI path %s to appear: %w", source, err)
		}
	}
}

// lookup returns the node of the disk, or "" when it is not there yet.
func (f Finder) lookup(source string) (string, error) {
	dir := filepath.Join(f.Sys, "devices", "pci0000:00")
	for _, slot := range strings.Split(source, "/") {
		if !strings.Contains(slot, ".") {
			slot += ".0"
		}
		// Domain and bus number are the guest's to give; the slot is the host's.
		found, err := filepath.Glob(filepath.Join(dir, "????:??:"+slot))
		if err != nil {
			return "", fmt.Errorf("look for the disk %s: %w", source, err)
		}
		if len(found) == 0 {
			return "", nil
		}
		if len(found) > 1 {
			return "", fmt.Errorf("look for the disk %s: %d devices match below %s", source, len(found), dir)
		}
		dir = found[0]
	}
	disks, err := filepath.Glob(filepath.Join(dir, "virtio*", "block", "*"))
	if err != nil || len(disks) == 0 {
		return "", err
	}
	return f.node(disks[0])
}

// node returns the device node of a disk known to sysfs, or "" while devtmpfs
// does not have it. The numbers are compared, since the name alone could be a
// left-over.
func (f Finder) node(sysDisk string) (string, error) {
	text, err := os.ReadFile(filepath.Join(sysDisk, "dev"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		return "", fmt.Errorf("read %s/dev: %w", sysDisk, err)
	}
	node := filepath.Join(f.Dev, filepath.Base(sysDisk))
	var st unix.Stat_t
	if err := unix.Lstat(node, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return "", nil
		}
		return "", fmt.Errorf("stat %s: %w", node, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(major, minor) {
		return "", fmt.Errorf("%s is not the block device %d:%d that sysfs names", node, major, minor)
	}
	return opened(node)
}

// opened returns the node once it can be opened. The kernel makes the node some
// steps before the disk behind it, and announces the disk only afterwards
// (block/genhd.c, device_add_disk): in between an open gives ENXIO.
func opened(node string) (string, error) {
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENXIO):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("open %s: %w", node, err)
	}
	return node, unix.Close(fd)
}

// listen opens a socket that receives the kernel's events from now on.
func listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("socket(NETLINK_KOBJECT_UEVENT)", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kobjectGroup}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind(NETLINK_KOBJECT_UEVENT)", err)
	}
	return os.NewFile(uintptr(fd), "uevent"), nil
}

// nextBlockEvent returns after the next event that may mean a new disk. What it
// says is not believed, only that sysfs is worth another look: that way neither
// a forged nor a lost event does harm.
func nextBlockEvent(ctx context.Context, events *os.File) error {
	buf := make([]byte, 8<<10) // UEVENT_BUFFER_SIZE is 2 KiB, include/linux/kobject.h
	for {
		n, err := events.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // events were dropped
			return nil
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		}
		if bytes.Contains(buf[:n], []byte("\x00SUBSYSTEM=block\x00")) {
			return nil
		}
	}
}
