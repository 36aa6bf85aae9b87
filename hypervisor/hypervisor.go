// Package hypervisor describes a virtual machine as a value: what may be asked
// of it, when, and what comes back. The machine itself is made by
// hypervisor/qemu.
//
// The package owns no process and starts no goroutine. It knows nothing of
// images, containers or the agent's protocol: a disk is a file with a driver, a
// connection is a stream to a vsock port.
package hypervisor

import (
	"context"
	"errors"
	"net"
)

// ErrGone is returned by every method of a VM whose process has ended.
var ErrGone = errors.New("virtual machine is gone")

// Driver is a format driver of QEMU's block layer.
type Driver string

const (
	DriverRaw  Driver = "raw"  // the file is the disk
	DriverVMDK Driver = "vmdk" // the file is a flat-extent descriptor
)

// Disk is a block device to attach. It owns nothing: the file stays the
// caller's and must exist until the disk is detached or the VM has ended.
type Disk struct {
	ID       string // unique within the VM; 1 to 20 letters, digits and '-', not first a '-': it is also the serial the guest sees
	Driver   Driver
	Path     string
	ReadOnly bool
}

// Attachment says where the guest finds a disk.
type Attachment struct {
	// PCIPath is the path of the device from the root bus, slots in hex
	// joined by '/', as the agent protocol writes it ("02/00": slot 0 behind
	// the bridge at slot 2).
	PCIPath string
}

// VM is one running virtual machine. Methods may be called from any goroutine
// and at the same time. Each of them returns when its context ends, and with an
// error that wraps ErrGone when the VM ends first.
type VM interface {
	// Attach hot-plugs a disk; legal from the first moment, while the guest
	// boots. It returns when QEMU has the disk, and the guest may find it later.
	// On an error nothing of the disk stays behind.
	Attach(ctx context.Context, d Disk) (Attachment, error)
	// Detach unplugs a disk and waits until the guest has let go of it.
	// Detaching a disk that is not attached is no error.
	Detach(ctx context.Context, id string) error
	// WaitReady waits until the agent in the guest listens. When it gives up,
	// the VM is still there, for the caller to Kill; the error has the tails
	// that Tail returns.
	WaitReady(ctx context.Context) error
	// Dial connects to a vsock port of the guest; legal after WaitReady.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Pid is QEMU's process id on the host; it stays the same after the end.
	Pid() int
	// Done is closed when the VM has ended and its process is reaped.
	Done() <-chan struct{}
	// Err says why the VM ended, with the tails of the console and of QEMU's
	// stderr, and wraps ErrGone; nil before Done is closed and after a Kill.
	Err() error
	// Tail returns the last lines of the guest's console and of QEMU's stderr.
	Tail() string
	// Kill ends the VM at once, waits until its processes are reaped and its
	// sockets and files are gone. It may be called more than once.
	Kill(ctx context.Context) error
}
