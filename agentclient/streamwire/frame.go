package streamwire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// MaxFrame is the most that a frame carries, in bytes.
const MaxFrame = 64 << 10

const (
	header = 4
	// fewBytes is what a frame has room for before one was full: most streams carry
	// nothing for most of their time, and there are three of a process, at both ends.
	fewBytes = 4 << 10
)

// Frame is the room for one frame, header and data in one piece, so that one
// write sends both. A stream needs one of them for all its life, at either end. The
// room is made when it is first needed, and is as large as frames turn out to be.
type Frame struct {
	head [header]byte
	buf  []byte
}

// Room is where the data of the frame goes that Send sends: 4 KiB, and MaxFrame once
// they were not enough. Its content is unspecified, and it is valid until the next
// Send or Receive.
func (f *Frame) Room() []byte {
	f.atLeast(fewBytes)
	return f.buf[header:]
}

// atLeast makes the room for so many bytes, or all of it.
func (f *Frame) atLeast(n int) {
	switch {
	case len(f.buf) >= header+n:
	case n <= fewBytes:
		f.buf = make([]byte, header+fewBytes)
	default:
		f.buf = make([]byte, header+MaxFrame)
	}
}

// Send sends the first n bytes of Room as a frame, in one write. n is 1 to
// MaxFrame: an empty frame would be the end.
func (f *Frame) Send(w io.Writer, n int) error {
	if n < 1 || n > len(f.buf)-header {
		return fmt.Errorf("a frame of %d bytes, want 1 to the %d that there is room for", n, max(0, len(f.buf)-header))
	}
	binary.BigEndian.PutUint32(f.buf, uint32(n))
	_, err := w.Write(f.buf[:header+n])
	if n == fewBytes {
		f.atLeast(MaxFrame)
	}
	return err
}

// SendEnd sends the frame that is the end of a stream.
func SendEnd(w io.Writer) error {
	_, err := w.Write(make([]byte, header))
	return err
}

// Receive reads one frame and not a byte more, and returns its data, which is
// valid until the next call. The end of the stream is io.EOF. A connection that ends without
// it is io.ErrUnexpectedEOF, and a length that no frame has ErrMalformed.
func (f *Frame) Receive(r io.Reader) ([]byte, error) {
	if _, err := io.ReadFull(r, f.head[:]); err != nil {
		return nil, within(err)
	}
	n := int(binary.BigEndian.Uint32(f.head[:]))
	switch {
	case n == 0:
		return nil, io.EOF
	case n > MaxFrame:
		return nil, fmt.Errorf("a frame of %d bytes, at most %d: %w", n, MaxFrame, ErrMalformed)
	}
	f.atLeast(n)
	data := f.buf[header : header+n]
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, within(err)
	}
	return data, nil
}
