package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// stream is the agent's end of one pipe or terminal of a process. At most one
// call reads it and one writes it at a time; others wait for their turn. It
// holds no data: what the host does not ask for stays in the pipe, and the
// process waits.
type stream struct {
	file    *os.File
	reading chan struct{} // holds a token while nobody reads
	writing chan struct{} // holds a token while nobody writes
	eof     atomic.Bool   // a reader was told the end
}

func newStream(f *os.File) *stream {
	s := &stream{file: f, reading: make(chan struct{}, 1), writing: make(chan struct{}, 1)}
	s.reading <- struct{}{}
	s.writing <- struct{}{}
	return s
}

// Read waits for at least one byte. The end of the stream is io.EOF, also when
// it was closed from this side.
func (s *stream) Read(ctx context.Context, buf []byte) (int, error) {
	if s == nil {
		return 0, io.EOF
	}
	n, err := turn(ctx, s.reading, s.file.SetReadDeadline, func() (int, error) { return s.file.Read(buf) })
	switch {
	case n > 0:
		return n, nil
	case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed), errors.Is(err, unix.EIO): // EIO: no process has the terminal open any more
		s.eof.Store(true)
		return 0, io.EOF
	}
	return n, err
}

// Write waits until the process has taken all of data.
func (s *stream) Write(ctx context.Context, data []byte) (int, error) {
	if s == nil {
		return 0, fmt.Errorf("the process has no standard input: %w", errdefs.ErrFailedPrecondition)
	}
	n, err := turn(ctx, s.writing, s.file.SetWriteDeadline, func() (int, error) { return s.file.Write(data) })
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EIO) {
		return n, fmt.Errorf("the standard input is closed: %w", errdefs.ErrFailedPrecondition)
	}
	return n, err
}

// turn runs one blocking operation at a time and wakes it when ctx ends, by a
// deadline in the past.
func turn(ctx context.Context, token chan struct{}, setDeadline func(time.Time) error, do func() (int, error)) (int, error) {
	select {
	case <-token:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { token <- struct{}{} }()

	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = setDeadline(time.Unix(1, 0))
	})
	n, err := do()
	if !stop() {
		// The deadline must be gone before the next one has its turn.
		<-woken
		_ = setDeadline(time.Time{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = ctx.Err()
		}
	}
	return n, err
}

// ended reports whether a reader was told the end.
func (s *stream) ended() bool { return s == nil || s.eof.Load() }

// Close ends the stream; a read or write under way returns.
func (s *stream) Close() {
	if s != nil {
		_ = s.file.Close()
	}
}
