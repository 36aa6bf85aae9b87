package agent

import (
	"context"
	"fmt"
	"net"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/layout"
)

const (
	anyCID  = unix.VMADDR_CID_ANY
	hostCID = unix.VMADDR_CID_HOST

	// maxPacket bounds one write to a vsock, and with it one packet, in bytes.
	// The guest's kernel sends more than 32 KiB as a header and many pieces
	// (net/vmw_vsock/virtio_transport_common.c, PAGE_ALLOC_COSTLY_ORDER);
	// vhost-device-vsock 0.3.0 expects one piece, loses the others, and the
	// connection stands still for ever.
	maxPacket = 16 << 10
)

// listen accepts connections from the host. It works before there is a device.
func listen(port uint32) (net.Listener, error) {
	l, err := vsock.ListenContextID(anyCID, port, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	return smallPackets{fromHost{l}}, nil
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
