// Package streaming lets clients open the streams of processes over containerd's
// streaming service (containerd.services.streaming.v1), as the CRI does with
// io_type = "streaming": the shim is the server, the client names a stream by an
// id, and the shim's side claims it by the same id, in whichever order.
//
// A Service owns the table of streams; the ttrpc server calls it from any
// goroutine. A Stream belongs to who claimed it: one goroutine reads or writes,
// and any may end it. A stream outlives its client: one that comes later with
// the same id, after a restart of containerd, takes its place. No data is held
// but what a client was allowed to send and nobody has read, at most a window.
package streaming

import (
	"context"
	"fmt"
	"sync"

	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	// maxID bounds an id, in bytes: containerd makes it of the id of a container
	// or exec and the name of the stream.
	maxID = 512
	// maxUnclaimed bounds streams that clients have opened and no process has.
	maxUnclaimed = 256
)

// Service is the streaming service of one shim.
type Service struct {
	mu        sync.Mutex
	streams   map[string]*Stream
	unclaimed int
}

// New returns a service without streams.
func New() *Service { return &Service{streams: map[string]*Stream{}} }

// Register adds the service to a server, before it serves.
func (s *Service) Register(server *ttrpc.Server) {
	streamingapi.RegisterTTRPCStreamingService(server, s)
}

// Claim returns the stream of a process. It is an error of class
// errdefs.ErrAlreadyExists if the id is claimed. The caller ends it with Close.
func (s *Service) Claim(id string) (*Stream, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	switch {
	case st == nil:
		st = newStream(s, id)
		s.streams[id] = st
	case st.claimed:
		return nil, fmt.Errorf("stream %s: %w", id, errdefs.ErrAlreadyExists)
	default:
		s.unclaimed--
	}
	st.claimed = true
	return st, nil
}

func checkID(id string) error {
	if id == "" || len(id) > maxID {
		return fmt.Errorf("id of a stream has %d bytes, want 1 to %d: %w", len(id), maxID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Stream serves one client for as long as its stream lasts.
func (s *Service) Stream(ctx context.Context, server streamingapi.TTRPCStreaming_StreamServer) error {
	err := s.serve(ctx, server)
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	return nil
}

func (s *Service) serve(ctx context.Context, server streamingapi.TTRPCStreaming_StreamServer) error {
	first, err := server.Recv()
	if err != nil {
		return err
	}
	var init streamingapi.StreamInit
	if err := first.UnmarshalTo(&init); err != nil {
		return fmt.Errorf("first message of a stream: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := checkID(init.ID); err != nil {
		return err
	}
	c := newClient(server)
	st, err := s.attach(init.ID, c)
	if err != nil {
		return err
	}
	defer s.left(st, c)
	if err := send(server, &emptypb.Empty{}); err != nil {
		return err
	}
	// It ends when this method returns, which ends the context that it waits in.
	go c.receive()
	select {
	case <-c.end:
	case <-ctx.Done():
		c.drop()
	}
	return nil
}

// attach gives a client to its stream, in the place of an earlier one.
func (s *Service) attach(id string, c *client) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st == nil {
		if s.unclaimed >= maxUnclaimed {
			return nil, fmt.Errorf("stream %s: %d streams wait for their process: %w", id, s.unclaimed, errdefs.ErrResourceExhausted)
		}
		s.unclaimed++
		st = newStream(s, id)
		s.streams[id] = st
	}
	st.attach(c)
	return st, nil
}

// left forgets a stream that no process had and whose client is gone.
func (s *Service) left(st *Stream, c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.detach(c) && !st.claimed && s.streams[st.id] == st {
		delete(s.streams, st.id)
		s.unclaimed--
	}
}

func (s *Service) forget(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st.id] == st {
		delete(s.streams, st.id)
	}
}

// send packs a message as containerd does: its type URL is the bare name.
func send(to interface{ Send(*anypb.Any) error }, m proto.Message) error {
	value, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return to.Send(&anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value})
}

// client is the client that a stream has at the moment.
type client struct {
	server streamingapi.TTRPCStreaming_StreamServer
	end    chan struct{} // closed when it is to be let go
	once   sync.Once

	mu      sync.Mutex
	changed chan struct{} // closed, and replaced, when one of these changes
	window  int64         // bytes that it takes at the moment
	granted int64         // bytes that it was allowed to send and has not sent
	in      []byte        // what it has sent and nobody has read
	closed  bool          // it sends no more
	gone    bool
}

func newClient(server streamingapi.TTRPCStreaming_StreamServer) *client {
	return &client{server: server, end: make(chan struct{}), changed: make(chan struct{})}
}

// change applies f and wakes who waits for it.
func (c *client) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// drop lets the client go.
func (c *client) drop() {
	c.once.Do(func() {
		c.change(func() { c.gone = true })
		close(c.end)
	})
}

// receive takes what the client sends, until it sends no more or breaks the
// protocol.
func (c *client) receive() {
	for {
		m, err := c.server.Recv()
		if err != nil {
			c.change(func() { c.closed = true })
			return
		}
		var update transferapi.WindowUpdate
		var data transferapi.Data
		switch {
		case m.UnmarshalTo(&update) == nil:
			c.change(func() { c.window += int64(update.Update) })
		case m.UnmarshalTo(&data) == nil && c.take(data.Data):
		default:
			c.drop()
			return
		}
	}
}

// take keeps data for the reader, if the client may send as much.
func (c *client) take(data []byte) (ok bool) {
	c.change(func() {
		if ok = int64(len(data)) <= c.granted; ok {
			c.granted -= int64(len(data))
			c.in = append(c.in, data...)
		}
	})
	return ok
}
