package streamwire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// batchFrames is how many frames are sent in one write. The transport cuts what is
// written at once into packets of its own size, so that frames which come together
// need fewer of them; and whoever fills a pipe is woken once for all.
const batchFrames = 4

// BatchBytes is the most data that a Batch carries.
const BatchBytes = batchFrames * MaxFrame

// Batch is the room for frames that are sent in one write. A stream that is sent needs
// one for all its life. It has room for little at first, for one frame once that was not
// enough, and for several once a whole frame was filled.
type Batch struct {
	buf    []byte
	frames int // that there is room for
	size   int // of each, at most
	used   int // bytes of buf
	filled bool
}

// Room is where the data of the next frame goes, nil if the batch is full. Its content is
// unspecified, and it is valid until the next call.
func (b *Batch) Room() []byte {
	if b.frames == 0 {
		b.frames, b.size = 1, fewBytes
	}
	if len(b.buf) < b.frames*(header+b.size) {
		b.buf = make([]byte, b.frames*(header+b.size))
	}
	if b.used+header+b.size > len(b.buf) {
		return nil
	}
	return b.buf[b.used+header : b.used+header+b.size]
}

// Add makes a frame of the first n bytes of Room, which must have as many. n is at
// least 1: an empty frame would be the end.
func (b *Batch) Add(n int) error {
	if room := len(b.Room()); n < 1 || n > room {
		return fmt.Errorf("a frame of %d bytes, want 1 to the %d that there is room for", n, room)
	}
	binary.BigEndian.PutUint32(b.buf[b.used:], uint32(n))
	b.used += header + n
	b.filled = n == b.size
	return nil
}

// Send sends the frames, if there are any, in one write. The batch is empty afterwards,
// whatever comes of it.
func (b *Batch) Send(w io.Writer) error {
	if b.used == 0 {
		return nil
	}
	_, err := w.Write(b.buf[:b.used])
	b.used = 0
	switch {
	case !b.filled:
	case b.size < MaxFrame:
		b.size = MaxFrame
	default:
		b.frames = batchFrames
	}
	b.filled = false
	return err
}
