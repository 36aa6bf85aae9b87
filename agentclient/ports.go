package agentclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/agentclient/streamwire/join"
)

// ConnectPort has the agent connect to a TCP port of the guest's loopback. conn
// leads to streamwire.PortsPort and stays the caller's, for JoinPort. ctx bounds
// the request alone. That nobody listens is errdefs.ErrUnavailable; the caller
// closes conn after any error.
func ConnectPort(ctx context.Context, conn net.Conn, port uint16) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := streamwire.WritePort(conn, port)
	if err == nil {
		err = streamwire.ReadAnswer(conn)
	}
	if !stop() && err == nil {
		err = os.ErrDeadlineExceeded
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("connect to port %d of the guest: %w", port, err)
	}
	return nil
}

// JoinPort hands over what both ends say, after ConnectPort, until both have
// ended, and closes both. It does not return earlier than its goroutines. An
// error is a connection of the guest that was broken, not ended.
func JoinPort(conn, local net.Conn) error { return join.Join(conn, local) }
