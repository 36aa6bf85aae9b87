package agentclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// streamPair is the connection of a stream: the host's end, and what answers
// the hello on the guest's.
func streamPair(t *testing.T) (host net.Conn, answer func(error) (net.Conn, streamwire.Hello)) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	host, guest := netConn(t, fds[0]), netConn(t, fds[1])
	t.Cleanup(func() {
		_ = host.Close()
		_ = guest.Close()
	})
	return host, func(refusal error) (net.Conn, streamwire.Hello) {
		hello, err := streamwire.ReadHello(guest)
		if err == nil {
			err = streamwire.WriteAnswer(guest, refusal)
		}
		if err != nil {
			t.Error(err)
		}
		return guest, hello
	}
}

func openStream(t *testing.T, kind streamwire.Kind) (*Stream, net.Conn) {
	t.Helper()
	conn, answer := streamPair(t)
	answered := make(chan net.Conn, 1)
	go func() {
		guest, hello := answer(nil)
		if (hello != streamwire.Hello{Stream: kind, Container: "c", Exec: "e"}) {
			t.Errorf("hello %+v", hello)
		}
		answered <- guest
	}()
	s, err := OpenStream(t.Context(), conn, Process{"c", "e"}, kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, <-answered
}

func TestOutputArrivesWholeWhateverTheBuffers(t *testing.T) {
	want := make([]byte, 3*streamwire.MaxFrame+17)
	rand.Read(want)
	s, guest := openStream(t, streamwire.Stdout)
	go func() {
		var f streamwire.Frame
		for data := want; len(data) > 0; {
			n := copy(f.Room(), data[:min(len(data), 50_000)])
			if err := f.Send(guest, n); err != nil {
				t.Error(err)
				return
			}
			data = data[n:]
		}
		_ = streamwire.SendEnd(guest)
	}()
	var got bytes.Buffer
	buf := make([]byte, 4099)
	for {
		n, err := s.Read(buf)
		got.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes of %d, or others", got.Len(), len(want))
	}
}

func TestOutputThatBreaksOffHasNotEnded(t *testing.T) {
	s, guest := openStream(t, streamwire.Stdout)
	_ = guest.Close()
	if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

func TestInputArrivesWholeAndEnds(t *testing.T) {
	want := make([]byte, 2*streamwire.MaxFrame+5)
	rand.Read(want)
	s, guest := openStream(t, streamwire.Stdin)
	received := make(chan []byte, 1)
	go func() {
		var f streamwire.Frame
		var got bytes.Buffer
		for {
			data, err := f.Receive(guest)
			if err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				received <- got.Bytes()
				return
			}
			got.Write(data)
		}
	}()
	if n, err := s.Write(want); n != len(want) || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if err := s.End(); err != nil {
		t.Fatal(err)
	}
	if got := <-received; !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, or others", len(got), len(want))
	}
}

func TestInputThatIsClosedSaysSo(t *testing.T) {
	s, guest := openStream(t, streamwire.Stdin)
	_ = guest.Close()
	if _, err := s.Write([]byte("x")); !errors.Is(err, ErrInputClosed) {
		t.Errorf("%v", err)
	}
}

func TestRefusedStreamKeepsTheClass(t *testing.T) {
	conn, answer := streamPair(t)
	go answer(errdefs.ErrAlreadyExists)
	if _, err := OpenStream(t.Context(), conn, Process{Container: "c"}, streamwire.Stdout); !errdefs.IsAlreadyExists(err) {
		t.Errorf("%v", err)
	}
}

func TestOpeningAStreamEndsWithItsContext(t *testing.T) {
	conn, _ := streamPair(t) // a guest that does not answer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := OpenStream(ctx, conn, Process{Container: "c"}, streamwire.Stdout); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
