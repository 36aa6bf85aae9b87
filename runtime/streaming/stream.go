package streaming

import (
	"context"
	"fmt"
	"io"
	"sync"

	transferapi "github.com/containerd/containerd/api/types/transfer"
)

const (
	// maxData is the most that one message carries, as containerd's own
	// (core/transfer/streaming).
	maxData = 32 << 10
	// window is what a client may send ahead of the reader.
	window = 2 * maxData
)

// Stream is one stream of a process, by its id.
type Stream struct {
	service *Service
	id      string
	claimed bool // guarded by the service

	mu       sync.Mutex
	changed  chan struct{} // closed, and replaced, when one of these changes
	client   *client       // nil while there is none
	finished bool          // no client is to come any more
	closed   bool
}

func newStream(s *Service, id string) *Stream {
	return &Stream{service: s, id: id, changed: make(chan struct{})}
}

func (st *Stream) change(f func()) {
	st.mu.Lock()
	defer st.mu.Unlock()
	f()
	close(st.changed)
	st.changed = make(chan struct{})
}

func (st *Stream) attach(c *client) {
	var before *client
	var closed bool
	st.change(func() { before, st.client, closed = st.client, c, st.closed })
	if before != nil {
		before.drop()
	}
	if closed {
		c.drop()
	}
}

// detach forgets a client, and says whether the stream has none now.
func (st *Stream) detach(c *client) (none bool) {
	st.change(func() {
		if st.client == c {
			st.client = nil
		}
		none = st.client == nil
	})
	return none
}

// await waits until ready says so for the client of the moment, or for none.
// ready is called with the locks of both held and must not wait.
func (st *Stream) await(ctx context.Context, ready func(*client) bool) (*client, error) {
	for {
		st.mu.Lock()
		c, streamChanged, closed := st.client, st.changed, st.closed
		if closed {
			st.mu.Unlock()
			return nil, fmt.Errorf("stream %s: %w", st.id, io.ErrClosedPipe)
		}
		var clientChanged chan struct{}
		var is bool
		if c == nil {
			is = ready(nil)
		} else {
			c.mu.Lock()
			is, clientChanged = ready(c), c.changed
			c.mu.Unlock()
		}
		st.mu.Unlock()
		if is {
			return c, nil
		}
		select {
		case <-streamChanged:
		case <-clientChanged:
		case <-ctx.Done():
			return nil, fmt.Errorf("stream %s: %w", st.id, ctx.Err())
		}
	}
}

// Write hands data to the client, and waits while there is none, or while it
// takes nothing. What was sent to a client that leaves is lost with it.
func (st *Stream) Write(ctx context.Context, data []byte) (int, error) {
	written := 0
	for written < len(data) {
		var n int
		c, err := st.await(ctx, func(c *client) bool {
			if c == nil || c.gone || c.window <= 0 {
				return false
			}
			n = int(min(c.window, maxData, int64(len(data)-written)))
			c.window -= int64(n)
			return true
		})
		if err != nil {
			return written, err
		}
		if err := send(c.server, &transferapi.Data{Data: data[written : written+n]}); err != nil {
			c.drop()
			st.detach(c)
			continue
		}
		written += n
	}
	return written, nil
}

// Read waits for at least one byte of a client. A client that leaves, or says
// that it has no more, is not the end: another may come, until Finish.
func (st *Stream) Read(ctx context.Context, buf []byte) (int, error) {
	for {
		var n int
		var grant int64
		var end bool
		c, err := st.await(ctx, func(c *client) bool {
			if c == nil {
				end = st.finished
				return end
			}
			n = copy(buf, c.in)
			c.in = append(c.in[:0], c.in[n:]...)
			// Told in halves, as every message has its price.
			if free := window - c.granted - int64(len(c.in)); free >= window/2 && !c.closed && !c.gone {
				grant = free
				c.granted += free
			}
			end = n == 0 && (c.closed || c.gone) && st.finished
			return n > 0 || grant > 0 || end
		})
		if err != nil {
			return 0, err
		}
		if grant > 0 {
			if err := send(c.server, &transferapi.WindowUpdate{Update: int32(grant)}); err != nil {
				c.drop()
			}
		}
		if n > 0 {
			return n, nil
		}
		if end {
			return 0, io.EOF
		}
	}
}

// Finish makes Read return io.EOF once the client of the moment has said that it
// has no more, and everything before it is read.
func (st *Stream) Finish() { st.change(func() { st.finished = true }) }

// Close ends the stream for the client too, which reads end of file then. It may
// be called more than once.
func (st *Stream) Close() {
	var c *client
	st.change(func() { c, st.closed = st.client, true })
	if c != nil {
		c.drop()
	}
	st.service.forget(st)
}
