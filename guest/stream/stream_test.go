package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipe returns the agent's end of a pipe and the process's.
func pipe(t *testing.T, read bool) (*Stream, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := r, w
	if !read {
		mine, theirs = w, r
	}
	s := New(mine)
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
	if string(got) != "last words" || !s.Ended() {
		t.Errorf("%q, ended %v", got, s.Ended())
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
	var none *Stream
	if _, err := none.Read(t.Context(), make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	if _, err := none.Write(t.Context(), []byte("x")); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("write: %v", err)
	}
	none.Close()
	if !none.Ended() {
		t.Error("it has no end")
	}
}

// steps is a reader that gives what it is told, call by call.
type steps []any

func (s *steps) Read(buf []byte) (int, error) {
	next := (*s)[0]
	*s = (*s)[1:]
	if err, failed := next.(error); failed {
		return 0, err
	}
	return copy(buf, next.(string)), nil
}

// TestWhatComesAfterATerminalsEndIsNotLost: the kernel may say EIO although the
// last process has written since it looked.
func TestWhatComesAfterATerminalsEndIsNotLost(t *testing.T) {
	eio := &os.PathError{Op: "read", Path: "terminal", Err: unix.EIO}
	for name, script := range map[string]steps{
		"an end":               {"all", eio, eio},
		"an end that is early": {"a", eio, "ll", eio, eio},
		"another error":        {"all", eio, io.EOF},
	} {
		terminal := script
		var got []byte
		for {
			buf := make([]byte, 100)
			n, err := toEnd(&terminal, buf)
			got = append(got, buf[:n]...)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v", name, err)
				}
				break
			}
		}
		if string(got) != "all" || len(terminal) != 0 {
			t.Errorf("%s: read %q, and %d steps are left", name, got, len(terminal))
		}
	}
}
