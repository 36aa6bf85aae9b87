package agentclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/agentclient/streamwire/join"
)

// Unpack writes a tar archive into a directory of a container. It takes over
// conn, which leads to streamwire.FilesPort, and closes it. A refusal has the
// class that docs/files-wire.md says. What was written before an error stays.
func Unpack(ctx context.Context, conn net.Conn, r streamwire.Request, archive io.Reader) error {
	r.Operation = streamwire.Unpack
	return operate(ctx, conn, r, func(frame *streamwire.Frame) error {
		for {
			n, err := archive.Read(frame.Room())
			if n > 0 {
				if err := frame.Send(conn, n); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return fmt.Errorf("read the archive: %w", err)
			}
		}
		if err := streamwire.SendEnd(conn); err != nil {
			return err
		}
		return streamwire.ReadAnswer(conn)
	})
}

// Pack writes a tar archive of what a path in a container names. It takes over
// conn, as Unpack does. After an error the archive is not whole.
func Pack(ctx context.Context, conn net.Conn, r streamwire.Request, archive io.Writer) error {
	r.Operation = streamwire.Pack
	return operate(ctx, conn, r, func(frame *streamwire.Frame) error {
		for {
			data, err := frame.Receive(conn)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if _, err := archive.Write(data); err != nil {
				return fmt.Errorf("write the archive: %w", err)
			}
		}
	})
}

// Fetch returns the content of the copy that a container has of a file of the
// host, or its last streamwire.MaxFetch bytes. It takes over conn, as Unpack does.
func Fetch(ctx context.Context, conn net.Conn, r streamwire.Request) ([]byte, error) {
	r.Operation = streamwire.Fetch
	var content []byte
	err := operate(ctx, conn, r, func(frame *streamwire.Frame) error {
		for {
			data, err := frame.Receive(conn)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if len(content)+len(data) > streamwire.MaxFetch {
				return fmt.Errorf("the guest sends more than %d bytes", streamwire.MaxFetch)
			}
			content = append(content, data...)
		}
	})
	return content, err
}

// Remove removes from the copies that a container has of the host's files what the
// path names, with all below it. What is not there is no error. It takes over conn,
// as Unpack does.
func Remove(ctx context.Context, conn net.Conn, r streamwire.Request) error {
	r.Operation = streamwire.Remove
	return operate(ctx, conn, r, func(*streamwire.Frame) error { return nil })
}

// operate makes a request and does what follows its answer, for as long as ctx
// lets it.
func operate(ctx context.Context, conn net.Conn, r streamwire.Request, follow func(*streamwire.Frame) error) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := request(conn, r)
	if err == nil {
		err = follow(new(streamwire.Frame))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s %s in container %s: %w", r.Operation, r.Path, r.Container, err)
	}
	return nil
}

func request(conn net.Conn, r streamwire.Request) error {
	if err := streamwire.WriteRequest(conn, r); err != nil {
		return err
	}
	return streamwire.ReadAnswer(conn)
}

// Forward is a socket in the guest that waits for somebody to connect.
type Forward struct {
	conn net.Conn
	what string
	once sync.Once
}

// OpenForward takes over conn, which leads to streamwire.FilesPort, and returns
// when the socket of the request is there. ctx bounds that alone. The connection
// is closed after an error.
func OpenForward(ctx context.Context, conn net.Conn, r streamwire.Request) (*Forward, error) {
	r.Operation = streamwire.Forward
	f := &Forward{conn: conn, what: fmt.Sprintf("forward %s of container %s", r.Path, r.Container)}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := request(conn, r)
	if !stop() && err == nil {
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		f.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("open %s: %w", f.what, err)
	}
	return f, nil
}

// Wait returns when somebody in the container has connected, or with an error
// when nobody can any more, which Close does too.
func (f *Forward) Wait() error {
	if err := streamwire.ReadAnswer(f.conn); err != nil {
		return fmt.Errorf("%s: %w", f.what, err)
	}
	return nil
}

// Join hands over what both ends say, after Wait, until both have ended, and
// closes both. It does not return earlier than its goroutines.
func (f *Forward) Join(local net.Conn) error {
	defer f.Close()
	return join.Join(f.conn, local)
}

// Close ends the connection. It may be called from any goroutine, more than once.
func (f *Forward) Close() {
	f.once.Do(func() { _ = f.conn.Close() })
}
