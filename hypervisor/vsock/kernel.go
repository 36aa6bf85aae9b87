package vsock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/internal/child"
)

const (
	// setGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h,
	// _IOW(VHOST_VIRTIO, 0x60, __u64).
	setGuestCID = 0x4008af60

	// firstCID: 0 to 2 are the hypervisor, the local machine and the host
	// (linux/vm_sockets.h). The last one, 2^32-1, is VMADDR_CID_ANY.
	firstCID = 3

	// cidAttempts: with a million VMs on the host, a random CID is taken once in
	// four thousand times.
	cidAttempts = 16

	// A connect that is answered by a reset is tried again, at once and then
	// ever later. It comes so when the driver in the guest is up and the agent
	// is not; before that a connect waits in the device, for two seconds
	// (VSOCK_DEFAULT_CONNECT_TIMEOUT).
	firstBackoff = 2 * time.Millisecond
	lastBackoff  = 50 * time.Millisecond
)

// kernelDevice is a vhost-vsock device of the host's kernel. Every port of the
// host is shared by all its VMs, so readiness is not announced by the guest:
// anybody's guest could. It is found out by connecting.
type kernelDevice struct {
	cid     uint32
	file    *os.File
	release sync.Once
}

func openKernel() (Device, error) {
	f, err := os.OpenFile(devicePath, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: vsock.backend = %q: load the module vhost_vsock: %w", ErrUnavailable, Kernel, err)
	}
	cid, err := claimCID(func(cid uint64) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setGuestCID, uintptr(unsafe.Pointer(&cid)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("claim a CID of %s: %w", devicePath, err)
	}
	return &kernelDevice{cid: cid, file: f}, nil
}

// claimCID tries random CIDs until set takes one. The kernel answers EADDRINUSE
// for that of another VM (drivers/vhost/vsock.c, vhost_vsock_set_cid), so that
// two shims cannot get the same one.
func claimCID(set func(cid uint64) error) (uint32, error) {
	for range cidAttempts {
		cid := firstCID + rand.Uint32N(1<<32-1-firstCID)
		err := set(uint64(cid))
		if err == nil {
			return cid, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%d random CIDs are all in use: %w", cidAttempts, unix.EADDRINUSE)
}

func (d *kernelDevice) Wiring() Wiring {
	return Wiring{Kind: Kernel, CID: d.cid, File: d.file}
}

func (d *kernelDevice) Release() { d.release.Do(func() { d.file.Close() }) }

func (d *kernelDevice) WaitReady(ctx context.Context) error {
	backoff := firstBackoff
	for {
		conn, err := d.Dial(ctx, PortAgent)
		if err == nil {
			return conn.Close()
		}
		if ctx.Err() == nil && !notYet(err) {
			return err
		}
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, lastBackoff)
		case <-ctx.Done():
			return fmt.Errorf("the agent does not listen on port %d of CID %d: %w (last attempt: %v)",
				PortAgent, d.cid, context.Cause(ctx), err)
		}
	}
}

// notYet says whether a connect failed as it does while the guest boots: nobody
// listens (ECONNRESET), or the device does not run yet (ETIMEDOUT, ENODEV,
// EHOSTUNREACH).
func notYet(err error) bool {
	for _, e := range []error{
		unix.ECONNRESET, unix.ECONNREFUSED, unix.ENODEV, unix.EHOSTUNREACH, unix.ENETUNREACH,
		unix.ETIMEDOUT,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (d *kernelDevice) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := vsock.DialContext(ctx, d.cid, port, nil)
	if err != nil {
		return nil, fmt.Errorf("connect to vsock port %d of CID %d: %w", port, d.cid, err)
	}
	return conn, nil
}

func (d *kernelDevice) Daemon() *child.Process { return nil }

func (d *kernelDevice) Diagnosis() string { return "" }

func (d *kernelDevice) Close(context.Context) error {
	d.Release()
	return nil
}
