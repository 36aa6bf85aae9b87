package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/test/need"
)

// deadline is for what should take no time on a machine that does other things.
const deadline = 30 * time.Second

// connect serves the one stream s, as every stream of container "c", and makes
// connections to it.
func connect(t *testing.T, s *Stream) func(streamwire.Hello) net.Conn {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "streams"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		find := func(h streamwire.Hello) (*Stream, error) {
			if h.Container != "c" {
				return nil, fmt.Errorf("container %s: %w", h.Container, errdefs.ErrNotFound)
			}
			return s, nil
		}
		if err := Serve(ctx, l, find, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		serving.Wait()
	})
	return func(h streamwire.Hello) net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(deadline))
		if err := streamwire.WriteHello(conn, h); err != nil {
			t.Fatal(err)
		}
		return conn
	}
}

// open is a connection that was not refused.
func open(t *testing.T, s *Stream, kind streamwire.Kind) net.Conn {
	t.Helper()
	conn := connect(t, s)(streamwire.Hello{Stream: kind, Container: "c"})
	if err := streamwire.ReadAnswer(conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

// receiveAll reads frames to the end of an output.
func receiveAll(conn net.Conn) ([]byte, error) {
	var frame streamwire.Frame
	var all []byte
	for {
		data, err := frame.Receive(conn)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, data...)
	}
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	var frame streamwire.Frame
	if err := frame.Send(conn, copy(frame.Room(), text)); err != nil {
		t.Fatal(err)
	}
}

// wantClosed waits for the guest to close the connection.
func wantClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := io.Copy(io.Discard, conn); n != 0 || err != nil {
		t.Errorf("%d bytes, then %v; want the end of the connection", n, err)
	}
}

func TestOutputArrivesWholeAndThenItsEnd(t *testing.T) {
	s, process := pipe(t, true)
	conn := open(t, s, streamwire.Stdout)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var writing sync.WaitGroup
	writing.Go(func() {
		_, _ = process.Write(want)
		_ = process.Close()
	})
	got, err := receiveAll(conn)
	writing.Wait()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if !s.Ended() {
		t.Error("all was read and it is not ended")
	}
}

func TestOutputThatNobodyTakesHoldsTheProcess(t *testing.T) {
	s, process := pipe(t, true)
	_ = open(t, s, streamwire.Stderr)
	if err := process.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := process.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n > 4<<20 {
		t.Errorf("it wrote %d bytes, %v", n, err)
	}
}

func TestOutputThatTheHostClosesIsThrownAway(t *testing.T) {
	s, process := pipe(t, true)
	conn := open(t, s, streamwire.Stdout)
	_ = conn.Close()
	if err := process.SetWriteDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	if n, err := process.Write(make([]byte, 8<<20)); err != nil {
		t.Errorf("it wrote %d bytes, %v", n, err)
	}
}

func TestOutputThatIsClosedUnderWayHasNoEnd(t *testing.T) {
	s, _ := pipe(t, true)
	conn := open(t, s, streamwire.Stdout)
	s.Close()
	if _, err := receiveAll(conn); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
	if s.Ended() {
		t.Error("it is ended, and nobody knows what was in it")
	}
}

func TestInputArrivesAndEnds(t *testing.T) {
	s, process := pipe(t, false)
	conn := open(t, s, streamwire.Stdin)
	var got []byte
	var reading sync.WaitGroup
	reading.Go(func() { got, _ = io.ReadAll(process) })
	send(t, conn, "one ")
	send(t, conn, "two")
	if err := streamwire.SendEnd(conn); err != nil {
		t.Fatal(err)
	}
	reading.Wait()
	if string(got) != "one two" {
		t.Errorf("%q", got)
	}
	wantClosed(t, conn)
}

func TestInputOfAProcessThatClosedItIsClosed(t *testing.T) {
	s, process := pipe(t, false)
	conn := open(t, s, streamwire.Stdin)
	_ = process.Close() // while the host has nothing to send
	wantClosed(t, conn)
}

func TestInputThatIsNotTakenIsGivenUpWithTheProcess(t *testing.T) {
	s, process := pipe(t, false)
	conn := open(t, s, streamwire.Stdin)
	for range 3 { // more than a pipe holds
		send(t, conn, string(make([]byte, streamwire.MaxFrame/2)))
	}
	_ = process.Close()
	// A socket that is closed with something unread resets its other end.
	n, err := io.Copy(io.Discard, conn)
	if n != 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%d bytes, then %v; want the end of the connection", n, err)
	}
}

func TestInputWhoseConnectionBreaksEnds(t *testing.T) {
	for name, breaks := range map[string]func(net.Conn){
		"between frames":  func(net.Conn) {},
		"within a frame":  func(c net.Conn) { _, _ = c.Write([]byte{0, 0, 0, 2, 'x'}) },
		"no frame at all": func(c net.Conn) { _, _ = c.Write([]byte{0xff, 0, 0, 2, 'x'}) },
	} {
		s, process := pipe(t, false)
		conn := open(t, s, streamwire.Stdin)
		breaks(conn)
		_ = conn.Close()
		if got, err := io.ReadAll(process); len(got) != 0 || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestStreamBelongsToWhoeverCameFirst(t *testing.T) {
	hello := streamwire.Hello{Stream: streamwire.Stdout, Container: "c"}
	t.Run("a connection", func(t *testing.T) {
		s, _ := pipe(t, true)
		dial := connect(t, s)
		if err := streamwire.ReadAnswer(dial(hello)); err != nil {
			t.Fatal(err)
		}
		if err := streamwire.ReadAnswer(dial(hello)); !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("second connection: %v", err)
		}
		if _, err := s.Read(t.Context(), make([]byte, 1)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("read: %v", err)
		}
		if _, err := s.Write(t.Context(), make([]byte, 1)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("write: %v", err)
		}
		if err := s.CloseInput(); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("close: %v", err)
		}
	})
	t.Run("a call", func(t *testing.T) {
		s, process := pipe(t, true)
		if _, err := process.WriteString("xy"); err != nil {
			t.Fatal(err)
		}
		for range 2 { // and it stays with calls
			if _, err := s.Read(t.Context(), make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := streamwire.ReadAnswer(connect(t, s)(hello)); !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("connection: %v", err)
		}
	})
	t.Run("a close", func(t *testing.T) {
		s, _ := pipe(t, false)
		if err := s.CloseInput(); err != nil {
			t.Fatal(err)
		}
		if err := streamwire.ReadAnswer(connect(t, s)(hello)); !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("connection: %v", err)
		}
	})
}

func TestRefusalsHaveTheirClass(t *testing.T) {
	s, _ := pipe(t, true)
	dial := connect(t, s)
	unknown := dial(streamwire.Hello{Container: "other"})
	if err := streamwire.ReadAnswer(unknown); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	wantClosed(t, unknown)

	conn, err := net.Dial("unix", unknown.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := streamwire.ReadAnswer(conn); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no hello: %v", err)
	}
}

func TestHelloThatDoesNotComeIsNotAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, guest := net.Pipe()
		defer host.Close()
		began := time.Now()
		go func() { _, _ = host.Write([]byte("EVS1")) }() // and no more
		err := serve(t.Context(), guest, nil)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != streamwire.HelloTimeout {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// terminal returns the agent's input of a terminal, and the process's end.
func terminal(t *testing.T) (*Stream, *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		need.Missing(t, "no terminals here: %v", err)
	}
	master := os.NewFile(uintptr(fd), "terminal")
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		need.Missing(t, "no terminals here: %v", err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	s, err := Input(master)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, slave
}

func TestEndOfInputLeavesATerminal(t *testing.T) {
	s, process := terminal(t)
	conn := open(t, s, streamwire.Stdin)
	send(t, conn, "typed\n")
	if err := streamwire.SendEnd(conn); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, conn)
	buf := make([]byte, 100)
	if n, err := process.Read(buf); err != nil || string(buf[:n]) != "typed\n" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if _, err := process.WriteString("still here"); err != nil {
		t.Error(err)
	}
}

func TestInputOfATerminalEndsWithItsLastProcess(t *testing.T) {
	s, process := terminal(t)
	conn := open(t, s, streamwire.Stdin)
	if _, err := process.WriteString("output that nobody reads"); err != nil {
		t.Fatal(err)
	}
	_ = process.Close()
	wantClosed(t, conn)
}
