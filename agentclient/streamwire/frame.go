package streamwire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// MaxFrame is the most that a frame carries, in bytes.
const MaxFrame = 64 << 10

const header = 4

// Frame is the room for one frame, header and data in one piece, so that one
// write sends both. A stream needs one of them for all its life, at either end.
type Frame struct {
	buf [header + MaxFrame]byte
}

// Room is where the data of the frame goes that Send sends. Its content is
// unspecified, and it is valid until the next Receive.
func (f *Frame) Room() []byte { return f.buf[header:] }

// Send sends the first n bytes of Room as a frame, in one write. n is 1 to
// MaxFrame: an empty frame would be the end.
func (f *Frame) Send(w io.Writer, n int) error {
	if n < 1 || n > MaxFrame {
		return fmt.Errorf("a frame of %d bytes, want 1 to %d", n, MaxFrame)
	}
	binary.BigEndian.PutUint32(f.buf[:], uint32(n))
	_, err := w.Write(f.buf[:header+n])
	return err
}

// SendEnd sends the frame that is the end of a stream.
func SendEnd(w io.Writer) error {
	_, err := w.Write(make([]byte, header))
	return err
}

// Receive reads one frame and not a byte more, and returns its data, which is
// part of Room. The end of the stream is io.EOF. A connection that ends without
// it is io.ErrUnexpectedEOF, and a length that no frame has ErrMalformed.
func (f *Frame) Receive(r io.Reader) ([]byte, error) {
	if _, err := io.ReadFull(r, f.buf[:header]); err != nil {
		return nil, within(err)
	}
	n := binary.BigEndian.Uint32(f.buf[:])
	switch {
	case n == 0:
		return nil, io.EOF
	case n > MaxFrame:
		return nil, fmt.Errorf("a frame of %d bytes, at most %d: %w", n, MaxFrame, ErrMalformed)
	}
	data := f.buf[header : header+n]
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, within(err)
	}
	return data, nil
}
