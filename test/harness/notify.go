package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// notify is the receiving end of sd_notify(3): containerd sends READY=1 when it
// serves requests, so that nobody has to try its socket until it answers.
type notify struct {
	path string
	conn *net.UnixConn
}

func newNotify(path string) (*notify, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for readiness: %w", err)
	}
	return &notify{path: path, conn: conn}, nil
}

// wait returns when the daemon is ready, has exited, or ctx has ended.
func (n *notify) wait(ctx context.Context, exited <-chan struct{}) error {
	received := make(chan error, 1)
	go func() { received <- n.receive() }()
	select {
	case err := <-received:
		return err
	case <-exited:
		return errors.Join(errors.New("it exited before it was ready"), n.abandon(received))
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("it did not become ready: %w", ctx.Err()), n.abandon(received))
	}
}

func (n *notify) receive() error {
	buf := make([]byte, 4096)
	for {
		size, err := n.conn.Read(buf)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(buf[:size]) {
			if bytes.Equal(bytes.TrimSpace(line), []byte("READY=1")) {
				return nil
			}
		}
	}
}

// abandon ends receive and waits for it.
func (n *notify) abandon(received <-chan error) error {
	if err := n.conn.SetReadDeadline(time.Now()); err != nil {
		return err
	}
	<-received
	return nil
}

func (n *notify) Close() error { return errors.Join(n.conn.Close(), os.Remove(n.path)) }
