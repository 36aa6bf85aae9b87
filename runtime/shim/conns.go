package shim

import (
	"context"
	"net"
	"sync"

	"github.com/containerd/ttrpc"
)

// conns knows the connections that clients have to the shim, so that it can end
// when they have their answers: a ttrpc server that is shut down closes a
// connection without the answer to a call if the connection was idle before that
// call (ttrpc 1.2.10, server.go, serverConn.run). The zero value is ready to use.
type conns struct {
	mu   sync.Mutex
	open int
	none chan struct{} // not nil while somebody waits; closed when none is open
}

// Handshake takes a connection of the shim's own user.
func (c *conns) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	conn, info, err := ttrpc.UnixSocketRequireSameUser().Handshake(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	return &countedConn{Conn: conn, from: c}, info, nil
}

func (c *conns) closed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.open == 0 && c.none != nil {
		close(c.none)
		c.none = nil
	}
}

// wait returns when no connection is open, or ctx has ended.
func (c *conns) wait(ctx context.Context) {
	c.mu.Lock()
	if c.open == 0 {
		c.mu.Unlock()
		return
	}
	if c.none == nil {
		c.none = make(chan struct{})
	}
	none := c.none
	c.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
	}
}

type countedConn struct {
	net.Conn
	from *conns
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(c.from.closed)
	return c.Conn.Close()
}
