// Package vsock gives a VM its vsock device and the host its end of it: over
// the kernel's vhost-vsock where the host has it, else over the vhost-user
// protocol with a vhost-device-vsock daemon.
//
// A Device belongs to one VM. Open is called before QEMU starts, WaitReady and
// Dial from any goroutine afterwards, Close once QEMU has ended. The package
// never starts QEMU and never speaks the agent's protocol.
package vsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/erofsvm/erofsvm/hypervisor/internal/child"
)

// Kind chooses how the vsock device is made.
type Kind string

const (
	// Auto is Kernel where /dev/vhost-vsock exists, else VhostUser.
	Auto Kind = "auto"
	// Kernel is the host kernel's vhost-vsock.
	Kernel Kind = "kernel"
	// VhostUser is a vhost-device-vsock daemon of the VM's own.
	VhostUser Kind = "vhost-user"
)

// Ports that the guest image and the host agree on.
const (
	// PortAgent is where the agent in the guest listens.
	PortAgent = 1024
	// PortReady is what the agent dials on the host (CID 2), once, when it
	// listens.
	PortReady = 1028
)

// ErrUnavailable is wrapped when the kind of device asked for cannot be had on
// this host.
var ErrUnavailable = errors.New("no vsock device can be made on this host")

// Config is what Open needs.
type Config struct {
	Kind Kind // empty is Auto
	// Daemon is vhost-device-vsock, an absolute path; for VhostUser.
	Daemon string
	// Dir is a directory private to the VM; for VhostUser, whose sockets
	// lie in it.
	Dir string
}

// Wiring is what QEMU must be given to have the device. It is plain data but for
// File.
type Wiring struct {
	Kind Kind // Kernel or VhostUser
	// CID is the guest's address.
	CID uint32
	// File is to be inherited by QEMU: an open vhost-vsock device with its CID
	// set, or a connection to the daemon. It stays the Device's to close.
	File *os.File
	// SharedMemory says that the guest's memory must be mappable by the
	// daemon. Without it QEMU says nothing and vsock never works.
	SharedMemory bool
}

// Device is the host's end of one VM's vsock device.
type Device interface {
	// Wiring is legal until Release.
	Wiring() Wiring
	// Release closes this process's copy of Wiring().File. It is called
	// once QEMU has inherited it.
	Release()
	// WaitReady returns when the agent in the guest listens, or with an
	// error when ctx ends or the device breaks.
	WaitReady(ctx context.Context) error
	// Dial connects to a port in the guest; legal after WaitReady.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Daemon is the process behind the device; nil if the kernel is.
	Daemon() *child.Process
	// Diagnosis is what the daemon printed last; empty if there is none.
	Diagnosis() string
	// Close ends the daemon and removes the sockets. It may be called more
	// than once.
	Close(ctx context.Context) error
}

// devicePath is the character device of the vhost_vsock module
// (drivers/vhost/vsock.c).
const devicePath = "/dev/vhost-vsock"

// Resolve answers Auto for this host.
func (k Kind) Resolve() Kind {
	if k != Auto && k != "" {
		return k
	}
	if _, err := os.Stat(devicePath); err == nil {
		return Kernel
	}
	return VhostUser
}

// SharedMemory says that the guest's memory must be mappable by another process:
// without it QEMU says nothing and vsock never works.
func (k Kind) SharedMemory() bool { return k == VhostUser }

// Open makes the host's end of a vsock device. Nothing is left behind by an
// error.
func Open(ctx context.Context, cfg Config) (Device, error) {
	switch cfg.Kind.Resolve() {
	case Kernel:
		return openKernel()
	case VhostUser:
		return openVhostUser(ctx, cfg)
	default:
		return nil, fmt.Errorf("vsock: %q is not auto, kernel or vhost-user: %w", cfg.Kind, ErrUnavailable)
	}
}
