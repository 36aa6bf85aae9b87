package streamwire

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

const (
	// PortsFeature is what an agent that speaks docs/ports-wire.md has among its
	// extra_features.
	PortsFeature = "erofsvm.ports/1"

	// PortsPort is the vsock port of the guest for it.
	PortsPort = 1030
)

const portsMagic = "EVP1"

// WritePort asks for a TCP port of the guest's loopback, in one write. Port 0 is
// errdefs.ErrInvalidArgument, and nothing is sent.
func WritePort(w io.Writer, port uint16) error {
	if port == 0 {
		return fmt.Errorf("connect to port 0: %w", errdefs.ErrInvalidArgument)
	}
	_, err := w.Write(binary.BigEndian.AppendUint16([]byte(portsMagic), port))
	return err
}

// ReadPort reads such a request and not a byte more. What is none is ErrMalformed;
// a connection that ends within is io.ErrUnexpectedEOF, one that ends before is
// io.EOF.
func ReadPort(r io.Reader) (port uint16, err error) {
	var msg [len(portsMagic) + 2]byte
	if _, err := io.ReadFull(r, msg[:]); err != nil {
		return 0, err
	}
	port = binary.BigEndian.Uint16(msg[len(portsMagic):])
	if string(msg[:len(portsMagic)]) != portsMagic || port == 0 {
		return 0, fmt.Errorf("a request for a port that is %q: %w", msg[:], ErrMalformed)
	}
	return port, nil
}
