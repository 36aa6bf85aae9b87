package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/guest/accept"
	"github.com/erofsvm/erofsvm/guest/rawio"
)

// Find returns the stream that a hello asks for. An error is the refusal, and
// its class the code: errdefs.ErrNotFound for a process that is not known,
// errdefs.ErrFailedPrecondition for a stream that it does not have.
type Find func(streamwire.Hello) (*Stream, error)

// Serve accepts connections until ctx ends or l fails. It closes l, ends every
// connection, and returns when all have ended. The host's connections must be
// the only ones that l accepts, and must bound the size of their writes
// themselves where that is needed.
func Serve(ctx context.Context, l net.Listener, find Find, log *slog.Logger) error {
	err := accept.Each(ctx, l, func(ctx context.Context, conn net.Conn) {
		if err := serve(ctx, conn, find); err != nil && ctx.Err() == nil {
			log.Warn("stream failed", "error", err.Error())
		}
	})
	if err != nil {
		return fmt.Errorf("accept streams: %w", err)
	}
	return nil
}

func serve(ctx context.Context, conn net.Conn, find Find) error {
	_ = conn.SetDeadline(time.Now().Add(streamwire.HelloTimeout))
	hello, err := streamwire.ReadHello(conn)
	if err != nil && !errors.Is(err, streamwire.ErrMalformed) {
		return fmt.Errorf("read a hello: %w", err)
	}
	var s *Stream
	if err == nil {
		s, err = take(hello, find)
	}
	_ = conn.SetDeadline(time.Time{})
	answered := streamwire.WriteAnswer(conn, err)
	if err != nil {
		return errors.Join(fmt.Errorf("refused: %w", err), answered)
	}
	// From here on the stream is this connection's. An answer that did not get
	// out is a host that has closed it, which the first frame will show.
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if hello.Stream == streamwire.Stdin {
		err = s.receive(conn)
	} else {
		err = s.send(conn)
	}
	if err != nil {
		return fmt.Errorf("%s of process %q in container %s: %w", hello.Stream, hello.Exec, hello.Container, err)
	}
	return nil
}

// take finds a stream that nobody has yet and makes it the connection's.
func take(hello streamwire.Hello, find Find) (*Stream, error) {
	s, err := find(hello)
	if err != nil {
		return nil, err
	}
	if !s.owner.CompareAndSwap(unowned, byConnection) {
		return nil, fmt.Errorf("%s of process %q in container %s is taken: %w", hello.Stream, hello.Exec, hello.Container, errdefs.ErrAlreadyExists)
	}
	return s, nil
}

// send sends an output until its end, and waits for the host to close the
// connection then. Once the host has closed it, what comes is thrown away.
func (s *Stream) send(conn net.Conn) error {
	batch := new(streamwire.Batch)
	gone := false
	for {
		err := s.fill(batch)
		if sendErr := batch.Send(conn); sendErr != nil && !gone {
			gone = true
			_ = conn.Close()
		}
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF):
			// The stream was closed under way, with its container. There is no
			// saying whether this was all, so no frame says that it was.
			return ignore(err, os.ErrClosed)
		case gone:
			return nil
		default:
			_ = streamwire.SendEnd(conn)
			_, _ = io.Copy(io.Discard, conn)
			return nil
		}
	}
}

// fill waits for output, and takes what there is of it then, as far as there is room. An
// error that comes after some output comes again with the next call.
func (s *Stream) fill(batch *streamwire.Batch) error {
	room := batch.Room()
	n, err := s.read(room)
	for n > 0 {
		if err := batch.Add(n); err != nil {
			return err
		}
		full := n == len(room)
		if room = batch.Room(); !full || room == nil {
			break
		}
		n, _ = rawio.TryRead(s.raw, room)
	}
	return err
}

// receive takes an input until its end, or until the process cannot take it
// any more. The stream is closed then.
func (s *Stream) receive(conn net.Conn) error {
	var hangup sync.WaitGroup
	defer hangup.Wait()
	defer s.Close()
	hangup.Go(func() {
		s.awaitHangup()
		_ = conn.Close()
	})
	frame := new(streamwire.Frame)
	for {
		data, err := frame.Receive(conn)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, streamwire.ErrMalformed):
			return err
		case err != nil:
			// The host or the process has gone away, or the guest is about to.
			return nil
		}
		if _, err := rawio.Write(s.raw, data); err != nil {
			return ignore(err, unix.EPIPE, unix.EIO, os.ErrClosed)
		}
	}
}

// awaitHangup returns once no process has the other end open any more, or the
// stream is closed. The stream must be one that nobody reads.
func (s *Stream) awaitHangup() {
	_ = s.raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd)}} // errors and hang-ups come without being asked for
		_, err := unix.Poll(poll, 0)
		for errors.Is(err, unix.EINTR) {
			_, err = unix.Poll(poll, 0)
		}
		return err != nil || poll[0].Revents != 0
	})
}

func ignore(err error, these ...error) error {
	for _, this := range these {
		if errors.Is(err, this) {
			return nil
		}
	}
	return err
}
