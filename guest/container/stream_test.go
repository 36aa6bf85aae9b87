package container

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// pipe returns the agent's end of a pipe and the process's.
func pipe(t *testing.T, read bool) (*stream, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := r, w
	if !read {
		mine, theirs = w, r
	}
	mine, err = pollable(mine)
	if err != nil {
		t.Fatal(err)
	}
	s := newStream(mine)
	t.Cleanup(func() {
		s.Close()
		_ = theirs.Close()
	})
	return s, theirs
}

func TestReadEndsWithEOFAfterTheLastByte(t *testing.T) {
	s, process := pipe(t, true)
	if _, err := process.WriteString("last words"); err != nil {
		t.Fatal(err)
	}
	process.Close()
	buf := make([]byte, 4)
	var got []byte
	for {
		n, err := s.Read(t.Context(), buf)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != "last words" || !s.ended() {
		t.Errorf("%q, ended %v", got, s.ended())
	}
	if _, err := s.Read(t.Context(), buf); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func TestAbandonedReadLosesNothing(t *testing.T) {
	s, process := pipe(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	abandoned := make(chan error, 1)
	go func() {
		_, err := s.Read(ctx, make([]byte, 10))
		abandoned <- err
	}()
	cancel()
	if err := <-abandoned; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := process.WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := s.Read(t.Context(), buf); err != nil || string(buf[:n]) != "kept" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

func TestCloseWakesAReader(t *testing.T) {
	s, _ := pipe(t, true)
	woken := make(chan error, 1)
	go func() {
		_, err := s.Read(context.Background(), make([]byte, 1))
		woken <- err
	}()
	s.Close()
	if err := <-woken; !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

func TestWriteWaitsForTheProcess(t *testing.T) {
	s, process := pipe(t, false)
	data := bytes.Repeat([]byte("x"), 1<<20) // more than a pipe holds
	var got []byte
	var reading sync.WaitGroup
	reading.Go(func() { got, _ = io.ReadAll(process) })
	if n, err := s.Write(t.Context(), data); n != len(data) || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	s.Close()
	reading.Wait()
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived", len(got))
	}
	if _, err := s.Write(t.Context(), data); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("after the end: %v", err)
	}
}

func TestWriteToAProcessThatDoesNotReadEnds(t *testing.T) {
	s, process := pipe(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Write(ctx, make([]byte, 1<<20))
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	process.Close()
	if _, err := s.Write(t.Context(), []byte("x")); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("nobody reads: %v", err)
	}
}

func TestProcessWithoutAStream(t *testing.T) {
	var none *stream
	if _, err := none.Read(t.Context(), make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	if _, err := none.Write(t.Context(), []byte("x")); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("write: %v", err)
	}
	none.Close()
	if !none.ended() {
		t.Error("it has no end")
	}
}

func TestTerminalCrossesTheSocket(t *testing.T) {
	c, err := newConsoleSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer master.Close()
	if err := unix.Sendmsg(int(c.child.Fd()), []byte("/dev/ptmx"), unix.UnixRights(int(master.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	got, err := c.receive()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	p := &process{terminal: true, stdout: newStream(got)}
	if err := p.resize(12, 34); err != nil {
		t.Fatal(err)
	}
	size, err := unix.IoctlGetWinsize(int(master.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Row != 12 || size.Col != 34 {
		t.Errorf("%+v, %v", size, err)
	}
}

func TestTerminalThatWasNotSentIsAnError(t *testing.T) {
	c, err := newConsoleSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.receive(); !errors.Is(err, unix.EPROTO) {
		t.Errorf("%v", err)
	}
}
