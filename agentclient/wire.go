package agentclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// Stream is one stream of a process on a connection of its own
// (docs/streams-wire.md), the faster way than ReadStdout and its like for an
// agent that has it. Read and End or Write and End belong to one goroutine;
// Close may be called from any, more than once, and ends them.
type Stream struct {
	conn  net.Conn
	what  string
	frame streamwire.Frame
	rest  []byte // of the frame that was received last
	once  sync.Once
}

// OpenStream takes over conn, which leads to streamwire.Port, and asks for a
// stream. It is called once the process is there. ctx bounds the opening alone.
// A refusal has the class that docs/streams-wire.md says; the connection is
// closed after any error.
func OpenStream(ctx context.Context, conn net.Conn, p Process, kind streamwire.Kind) (*Stream, error) {
	s := &Stream{conn: conn, what: fmt.Sprintf("stream %s of process %q of container %s", kind, p.Exec, p.Container)}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := streamwire.WriteHello(conn, streamwire.Hello{Stream: kind, Container: p.Container, Exec: p.Exec})
	if err == nil {
		err = streamwire.ReadAnswer(conn)
	}
	if !stop() && err == nil {
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		s.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("open %s: %w", s.what, err)
	}
	return s, nil
}

// Read returns at least one byte of an output, and io.EOF once every process
// that had it open has closed it and all of it was read.
func (s *Stream) Read(buf []byte) (int, error) {
	if len(s.rest) == 0 {
		data, err := s.frame.Receive(s.conn)
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", s.what, err)
		}
		s.rest = data
	}
	n := copy(buf, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Write gives data to an input, and waits while the process does not take it.
// When the process has closed its end, or has ended, the error wraps
// ErrInputClosed; what was not taken by then is lost, as in a pipe.
func (s *Stream) Write(data []byte) (int, error) {
	written := 0
	for written < len(data) {
		n := copy(s.frame.Room(), data[written:])
		if err := s.frame.Send(s.conn, n); err != nil {
			return written, s.notTaken(err)
		}
		written += n
	}
	return written, nil
}

// End ends an input: the process reads end of file once it has read what came
// before. The connection stays open until the guest has taken that, or Close.
func (s *Stream) End() error {
	if err := streamwire.SendEnd(s.conn); err != nil {
		return s.notTaken(err)
	}
	return nil
}

// ErrInputClosed is wrapped by errors of Write and End when the process takes
// no more input.
var ErrInputClosed = errors.New("the process has closed its input")

func (s *Stream) notTaken(err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		err = fmt.Errorf("%w: %w", ErrInputClosed, err)
	}
	return fmt.Errorf("%s: %w", s.what, err)
}

// Close ends the connection.
func (s *Stream) Close() {
	s.once.Do(func() { _ = s.conn.Close() })
}
