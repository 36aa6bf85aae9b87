package verity

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The device mapper's calls are made here and not by a library: the one of
// containerd keeps what it hands to the kernel on the goroutine's stack, by an
// address that does not follow when the stack moves (v0.1.0, pkg/dm).

// controlNode is where devtmpfs shows the device mapper once it is loaded.
const controlNode = "/dev/mapper/control"

// request is a call's argument: struct dm_ioctl, and behind it one target with
// its parameters, or with its status (include/uapi/linux/dm-ioctl.h). The
// longest parameters there can be have some 900 bytes.
type request struct {
	unix.DmIoctl
	target unix.DmTargetSpec
	text   [1024]byte
}

func newRequest(name string) *request {
	r := &request{}
	r.Version = [3]uint32{4, 0, 0} // unchanged since Linux 2.6
	r.Data_size = uint32(unsafe.Sizeof(*r))
	r.Data_start = uint32(unsafe.Sizeof(r.DmIoctl))
	copy(r.Name[:len(r.Name)-1], name)
	return r
}

func (r *request) call(step string, command uintptr) error {
	fail := func(err error) error {
		name, _, _ := bytes.Cut(r.Name[:], []byte{0})
		return fmt.Errorf("device mapper: %s %s: %w", step, name, err)
	}
	control, err := unix.Open(controlNode, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(&os.PathError{Op: "open", Path: controlNode, Err: err})
	}
	defer unix.Close(control)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(control), command, uintptr(unsafe.Pointer(r))); errno != 0 {
		return fail(errno)
	}
	return nil
}

// createDevice makes a device without a table and returns its number.
func createDevice(name string) (uint64, error) {
	r := newRequest(name)
	err := r.call("create", unix.DM_DEV_CREATE)
	return r.Dev, err
}

// loadTable gives a device its table of one target, read-only.
func loadTable(name string, sectors uint64, target string) error {
	r := newRequest(name)
	r.Flags, r.Target_count = unix.DM_READONLY_FLAG, 1
	r.target.Length = sectors
	copy(r.target.Target_type[:], "verity")
	if copy(r.text[:len(r.text)-1], target) < len(target) {
		return fmt.Errorf("device mapper: load the table of %s: %d bytes of parameters: %w", name, len(target), unix.E2BIG)
	}
	return r.call("load the table of", unix.DM_TABLE_LOAD)
}

// resume lets a device use the table that was loaded.
func resume(name string) error { return newRequest(name).call("resume", unix.DM_DEV_SUSPEND) }

// removeDevice removes a device; one that is open gives EBUSY.
func removeDevice(name string) error { return newRequest(name).call("remove", unix.DM_DEV_REMOVE) }

// status returns what the target says of itself.
func status(name string) (string, error) {
	r := newRequest(name)
	if err := r.call("ask the status of", unix.DM_TABLE_STATUS); err != nil {
		return "", err
	}
	text, _, _ := bytes.Cut(r.text[:], []byte{0})
	return string(text), nil
}

// corruptState reads a status: it begins with "V" while all that was read
// matched, and with "C" from the first block on that did not
// (drivers/md/dm-verity-target.c, verity_status).
func corruptState(status string) bool { return strings.HasPrefix(status, "C") }
