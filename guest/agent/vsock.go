package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/rawio"
)

const (
	anyCID  = unix.VMADDR_CID_ANY
	hostCID = unix.VMADDR_CID_HOST

	// maxPacket bounds one write to a vsock, and with it one packet, in bytes.
	// What does not fit into 32 KiB with what the guest's kernel adds to it (a
	// header of 44 bytes before, and 320 behind) it sends as a header and many
	// pieces (include/linux/virtio_vsock.h, virtio_vsock_alloc_skb);
	// vhost-device-vsock 0.3.0 expects one piece, loses the others, and the
	// connection stands still for ever. Each packet costs the guest more than its
	// bytes do, so it is as large as can be.
	maxPacket = 31 << 10
)

// listen accepts connections from the host. It works before there is a device.
func listen(port uint32) (net.Listener, error) {
	l, err := vsock.ListenContextID(anyCID, port, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	return smallPackets{raw{fromHost{l}}}, nil
}

// fromHost is a listener that hears the host only. Where the kernel has a
// transport for it, processes of the guest reach its ports as well.
type fromHost struct{ net.Listener }

func (l fromHost) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, ok := conn.RemoteAddr().(*vsock.Addr); ok && peer.ContextID == hostCID {
			return conn, nil
		}
		_ = conn.Close()
	}
}

// raw is a listener whose connections are read and written by package rawio: those
// of package vsock are nonblocking.
type raw struct{ net.Listener }

func (l raw) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		below, err := conn.(syscall.Conn).SyscallConn()
		if err == nil {
			return rawConn{conn, below}, nil
		}
		_ = conn.Close() // it is gone again
	}
}

type rawConn struct {
	net.Conn
	raw syscall.RawConn
}

func (c rawConn) Read(p []byte) (int, error) {
	n, err := rawio.Read(c.raw, p)
	return n, closedConn(err)
}

func (c rawConn) Write(p []byte) (int, error) {
	n, err := rawio.Write(c.raw, p)
	return n, closedConn(err)
}

// closedConn is an error as a connection has it.
func closedConn(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// dialReady connects to the host, once, and closes the connection: only that it
// came says something. A host that does not wait for it refuses, which is fine.
func dialReady(ctx context.Context) error {
	conn, err := vsock.DialContext(ctx, hostCID, layout.PortReady, nil)
	if err != nil {
		return err
	}
	return conn.Close()
}

// smallPackets is a listener whose connections write no more than maxPacket at
// a time.
type smallPackets struct{ net.Listener }

func (l smallPackets) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return smallWrites{conn}, nil
}

type smallWrites struct{ net.Conn }

// Write writes all of p, in pieces.
func (c smallWrites) Write(p []byte) (int, error) {
	written := 0
	for {
		n, err := c.Conn.Write(p[written:min(written+maxPacket, len(p))])
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
	}
}
