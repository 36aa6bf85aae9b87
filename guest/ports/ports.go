// Package ports is the guest's end of docs/ports-wire.md: it connects the host to
// TCP ports of the guest's loopback.
//
// It owns the connections that its listener accepts and those that it makes for
// them. Serve is called once.
package ports

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/agentclient/streamwire/join"
	"github.com/erofsvm/erofsvm/guest/accept"
)

// dialTimeout bounds a connection to the loopback, where an answer takes no time:
// a program that has its queue full gets this long to take from it.
const dialTimeout = 5 * time.Second

// addresses are those of the loopback, in the order in which they are tried.
var addresses = [...]string{"127.0.0.1", "::1"}

// Serve accepts connections until ctx ends or l fails. It closes l, ends every
// connection, and returns when all have ended. The host's connections must be the
// only ones that l accepts.
func Serve(ctx context.Context, l net.Listener, log *slog.Logger) error {
	err := accept.Each(ctx, l, func(ctx context.Context, conn net.Conn) {
		if err := serve(ctx, conn); err != nil && ctx.Err() == nil {
			log.Debug("connection to a port", "error", err.Error())
		}
	})
	if err != nil {
		return fmt.Errorf("accept connections to ports: %w", err)
	}
	return nil
}

func serve(ctx context.Context, conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(streamwire.HelloTimeout))
	port, err := streamwire.ReadPort(conn)
	_ = conn.SetDeadline(time.Time{})
	if errors.Is(err, streamwire.ErrMalformed) {
		return errors.Join(err, streamwire.WriteAnswer(conn, err))
	}
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	program, err := dial(ctx, port)
	if err := streamwire.WriteAnswer(conn, err); err != nil || program == nil {
		if program != nil {
			_ = program.Close()
		}
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = program.Close() })
	defer stop()
	return join.Join(conn, program)
}

// dial connects to a port of the loopback. Any reason why that fails is one for
// the host to see: it is class errdefs.ErrUnavailable.
func dial(ctx context.Context, port uint16) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	var failed error
	for _, address := range addresses {
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, failed)
}
