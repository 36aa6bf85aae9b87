package rawio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipe is one whose reads and writes wait for at most half a minute.
func pipe(t *testing.T) (r, w *os.File, rawR, rawW syscall.RawConn) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	deadline := time.Now().Add(30 * time.Second)
	if err := errors.Join(r.SetDeadline(deadline), w.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	rawR, errR := r.SyscallConn()
	rawW, errW := w.SyscallConn()
	if err := errors.Join(errR, errW); err != nil {
		t.Fatal(err)
	}
	return r, w, rawR, rawW
}

func TestMoreThanFitsArrivesWhole(t *testing.T) {
	_, w, rawR, rawW := pipe(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<15)
	var writing sync.WaitGroup
	writing.Go(func() {
		if n, err := Write(rawW, want); n != len(want) || err != nil {
			t.Errorf("%d bytes of %d, %v", n, len(want), err)
		}
		w.Close()
	})
	var got []byte
	var err error
	for buf := make([]byte, 5000); err == nil; {
		var n int
		n, err = Read(rawR, buf)
		got = append(got, buf[:n]...)
	}
	writing.Wait()
	if !errors.Is(err, io.EOF) || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestADeadlineEndsAWait(t *testing.T) {
	r, w, rawR, rawW := pipe(t)
	past := time.Unix(1, 0)
	if err := errors.Join(r.SetDeadline(past), w.SetDeadline(past)); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(rawR, make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if _, err := Write(rawW, make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
}

func TestClosingEndsAWait(t *testing.T) {
	r, _, rawR, rawW := pipe(t)
	ended := make(chan error, 1)
	go func() {
		_, err := Read(rawR, make([]byte, 1))
		ended <- err
	}()
	r.Close() // before the read waits or meanwhile
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
	if n, err := Write(rawW, make([]byte, 1)); n != 0 || !errors.Is(err, unix.EPIPE) {
		t.Errorf("to nobody: %d, %v", n, err)
	}
}

func TestNothingIsNoCall(t *testing.T) {
	_, _, rawR, rawW := pipe(t)
	if n, err := Read(rawR, nil); n != 0 || err != nil {
		t.Errorf("read: %d, %v", n, err)
	}
	if n, err := Write(rawW, nil); n != 0 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
}

func TestTryReadDoesNotWait(t *testing.T) {
	_, w, rawR, rawW := pipe(t)
	buf := make([]byte, 8)
	if n, err := TryRead(rawR, buf); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing: %d bytes, %v", n, err)
	}
	if _, err := Write(rawW, []byte("text")); err != nil {
		t.Fatal(err)
	}
	if n, err := TryRead(rawR, buf); err != nil || string(buf[:n]) != "text" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	w.Close()
	if n, err := TryRead(rawR, buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the end: %d bytes, %v", n, err)
	}
	if n, err := TryRead(rawR, nil); n != 0 || err != nil {
		t.Errorf("no room: %d bytes, %v", n, err)
	}
}
