// Package blockdev opens block devices of the host by their number.
//
// It changes nothing, keeps nothing and starts no goroutine; functions may be called
// from any.
package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Host is where the host has its devices.
type Host struct {
	Sys, Dev string
}

// Open opens the block device with this number for the caller to close, for writing
// too unless readOnly. For writing, one that the host itself uses, by a mount or
// below another device, is refused with errdefs.ErrFailedPrecondition: two that write
// to one disk and do not know of each other destroy it. One that is not there is
// os.ErrNotExist.
func (h Host) Open(major, minor uint32, readOnly bool) (*os.File, error) {
	node, err := h.node(major, minor)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDONLY
	if !readOnly {
		flags = os.O_RDWR | unix.O_EXCL // without O_CREAT: unless it is in use, open(2)
	}
	f, err := os.OpenFile(node, flags|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s (%d:%d) is in use on the host, mounted or part of another device, and cannot be written to by a virtual machine too: %w",
			node, major, minor, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(major, minor)) {
		err = fmt.Errorf("%s is not the block device %d:%d: %w", node, major, minor, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// node is the path of the device's node, by the name that the kernel has for it
// (uevent in Documentation/ABI/testing/sysfs-uevent).
func (h Host) node(major, minor uint32) (string, error) {
	path := filepath.Join(h.Sys, "dev/block", fmt.Sprintf("%d:%d", major, minor), "uevent")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("block device %d:%d: %w", major, minor, err)
	}
	for line := range bytes.Lines(text) {
		name, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "DEVNAME=")
		if ok && filepath.IsLocal(name) {
			return filepath.Join(h.Dev, name), nil
		}
	}
	return "", fmt.Errorf("block device %d:%d: %s has no name of it: %w", major, minor, path, errdefs.ErrNotFound)
}
