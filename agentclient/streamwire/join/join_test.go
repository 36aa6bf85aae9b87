package join

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a Unix socket with both of its ends.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { ends[i].Close() })
		_ = ends[i].SetDeadline(time.Now().Add(30 * time.Second))
	}
	return ends[0], ends[1]
}

// joined are two programs, each on a plain socket, with a connection in frames
// between them.
func joined(t *testing.T) (one, other *net.UnixConn, ended func() error) {
	t.Helper()
	oneEnd, onePlain := pair(t)
	otherEnd, otherPlain := pair(t)
	left, right := pair(t)
	var both sync.WaitGroup
	var errs [2]error
	both.Go(func() { errs[0] = Join(left, onePlain) })
	both.Go(func() { errs[1] = Join(right, otherPlain) })
	return oneEnd.(*net.UnixConn), otherEnd.(*net.UnixConn), func() error {
		both.Wait()
		return errors.Join(errs[:]...)
	}
}

func TestBothDirectionsArriveAndEndByThemselves(t *testing.T) {
	one, other, ended := joined(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	var writing sync.WaitGroup
	writing.Go(func() {
		_, _ = one.Write(want)
		_ = one.CloseWrite()
	})
	got, err := io.ReadAll(other)
	writing.Wait()
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	// The other direction is still open.
	if _, err := other.Write([]byte("back")); err != nil {
		t.Fatal(err)
	}
	_ = other.CloseWrite()
	if got, err := io.ReadAll(one); err != nil || string(got) != "back" {
		t.Errorf("%q, %v", got, err)
	}
	if err := ended(); err != nil {
		t.Error(err)
	}
}

func TestAProgramThatClosesItsSocketEndsTheOther(t *testing.T) {
	one, other, ended := joined(t)
	if _, err := one.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = one.Close()
	if got, err := io.ReadAll(other); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	_ = other.Close()
	_ = ended()
}

func TestAConnectionThatBreaksEndsTheProgram(t *testing.T) {
	program, plain := pair(t)
	frames, guest := pair(t)
	done := make(chan error, 1)
	go func() { done <- Join(frames, plain) }()
	if _, err := guest.Write([]byte{0, 0, 0, 9, 'x'}); err != nil {
		t.Fatal(err)
	}
	_ = guest.Close()
	if _, err := io.ReadAll(program); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the program reads %v", err)
	}
	if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

func TestWhatIsNoFrameEndsTheProgram(t *testing.T) {
	program, plain := pair(t)
	frames, guest := pair(t)
	done := make(chan error, 1)
	go func() { done <- Join(frames, plain) }()
	if _, err := guest.Write([]byte{0xff, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(program)
	if err := <-done; !errors.Is(err, streamwire.ErrMalformed) {
		t.Errorf("%v", err)
	}
}
