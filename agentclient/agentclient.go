// Package agentclient speaks the guest agent's protocol from the host: a typed
// client over one connection, with a deadline on every call.
//
// The package owns the connection that is given to it and the goroutine that
// reads from it; Close ends both. It dials nothing itself and knows nothing of
// virtual machines, disks or containerd. Messages are those of agentclient/pb.
//
// All methods of a Client may be called from any goroutine and at the same
// time: calls, waits and streams share one connection and do not block each
// other. The guest is not trusted: replies are checked for size before they
// are handed on, and its error texts are cut.
package agentclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// ErrConnection is wrapped by every error that means that the connection to
// the agent is gone, or never carried the answer. An error of the agent itself
// never wraps it: that one wraps a class of github.com/containerd/errdefs.
var ErrConnection = errors.New("connection to the guest agent failed")

// ErrBadReply is wrapped when the guest answers with what it may not answer,
// such as more bytes than it was asked for.
var ErrBadReply = errors.New("guest agent broke the protocol")

// MaxChunk is the most bytes that one stream or file message carries. The
// ttrpc message limit is 4 MiB, headers included.
const MaxChunk = 1 << 20

// maxErrorText bounds what the guest can make the host write into its log.
const maxErrorText = 4 << 10

// Deadlines bounds the calls, by what they make the agent do. A zero value is
// replaced by that of DefaultDeadlines. A call ends at the earlier of its
// deadline and that of the caller's context.
type Deadlines struct {
	Query   time.Duration // Check, Version, GetGuestDetails, Stats and Lists: the agent only looks
	Sandbox time.Duration // Personalise, CreateSandbox, DestroySandbox, SetGuestDateTime, ReseedRandomDev, network
	Create  time.Duration // CreateContainer, ExecProcess: disks are awaited and mounted
	Start   time.Duration // StartContainer
	Signal  time.Duration // SignalProcess, TtyWinResize, CloseStdin, Pause, Resume, Update, OnlineCPUMem
	Remove  time.Duration // RemoveContainer: filesystems are written back and unmounted
	Copy    time.Duration // CopyFile, each message
}

// DefaultDeadlines leave room for a guest that runs without hardware
// virtualisation on a busy machine.
func DefaultDeadlines() Deadlines {
	return Deadlines{
		Query:   10 * time.Second,
		Sandbox: 30 * time.Second,
		Create:  60 * time.Second,
		Start:   30 * time.Second,
		Signal:  10 * time.Second,
		Remove:  30 * time.Second,
		Copy:    30 * time.Second,
	}
}

func (d Deadlines) orDefault() Deadlines {
	def := DefaultDeadlines()
	for _, p := range []struct {
		have *time.Duration
		def  time.Duration
	}{
		{&d.Query, def.Query}, {&d.Sandbox, def.Sandbox}, {&d.Create, def.Create},
		{&d.Start, def.Start}, {&d.Signal, def.Signal}, {&d.Remove, def.Remove}, {&d.Copy, def.Copy},
	} {
		if *p.have <= 0 {
			*p.have = p.def
		}
	}
	return d
}

// Client is the host's end of the agent protocol.
type Client struct {
	conn      *ttrpc.Client
	agent     pb.AgentServiceService
	health    pb.HealthService
	guest     pb.GuestServiceService
	deadlines Deadlines
	done      chan struct{}
}

// New takes over conn, which leads to the agent's port, and starts reading
// from it. It sends nothing. The caller ends the client with Close.
func New(conn net.Conn, d Deadlines) *Client {
	c := &Client{deadlines: d.orDefault(), done: make(chan struct{})}
	c.conn = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(c.done) }))
	c.agent = pb.NewAgentServiceClient(c.conn)
	c.health = pb.NewHealthClient(c.conn)
	c.guest = pb.NewGuestServiceClient(c.conn)
	return c
}

// Close closes the connection; every call under way returns an error that
// wraps ErrConnection. It may be called more than once.
func (c *Client) Close() error { return c.conn.Close() }

// Done is closed when the connection has ended, for whichever reason, and its
// goroutine is about to return.
func (c *Client) Done() <-chan struct{} { return c.done }

// unbounded marks calls that last as long as what they wait for: only the
// caller's context ends them.
const unbounded = 0

// call makes one call with its deadline and translates its error.
func call[Req, Resp any](ctx context.Context, method string, deadline time.Duration,
	do func(context.Context, Req) (Resp, error), req Req,
) (Resp, error) {
	bounded := ctx
	if deadline != unbounded {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	resp, err := do(bounded, req)
	if err == nil {
		return resp, nil
	}
	err = classify(err)
	// The deadline travels with the call, and the agent may see it pass first.
	if deadline != unbounded && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return resp, fmt.Errorf("agent %s: no answer within %s: %w", method, deadline, err)
	}
	return resp, fmt.Errorf("agent %s: %w", method, err)
}

// classify turns what ttrpc returns into a class that errors.Is can tell: a
// context error, an errdefs class for what the agent answered, or
// ErrConnection for all else.
func classify(err error) error {
	var tooBig *ttrpc.OversizedMessageErr
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &tooBig):
		return fmt.Errorf("%w: %w", errdefs.ErrResourceExhausted, err)
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%w: %w", ErrConnection, err)
	}
	// The details of a status are dropped: they would be decoded by type URLs
	// of the guest's choosing.
	text := st.Message()
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "…"
	}
	return errgrpc.ToNative(status.New(st.Code(), text).Err())
}
