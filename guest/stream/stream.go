// Package stream carries the standard streams of processes: the agent's ends of
// their pipes and terminals, and the connections of docs/streams-wire.md.
//
// A Stream is read or written either by single calls, which is how the agent's
// protocol has it, or by one connection, never by both: what comes first keeps
// it. Its methods may be called from any goroutine. The package holds no data
// but the one frame of each connection, so a process whose output nobody takes
// waits. Serve owns its listener, its connections and a goroutine for each,
// two for an input. Nothing here starts or knows a process.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/rawio"
)

// Stream is the agent's end of one pipe or terminal of a process. At most one
// call reads it and one writes it at a time; others wait for their turn.
type Stream struct {
	file    *os.File
	raw     syscall.RawConn // of file
	reading chan struct{}   // holds a token while nobody reads
	writing chan struct{}   // holds a token while nobody writes
	ended   atomic.Bool     // the end was read
	owner   atomic.Int32
}

// Input returns a Stream for the input of a terminal, of which master stays the
// caller's. It has a descriptor of its own, as waiting for the end of a terminal
// and reading from it exclude each other on one.
func Input(master *os.File) (*Stream, error) {
	raw, err := master.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dup error
	if err := raw.Control(func(of uintptr) { fd, dup = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, err
	}
	if dup != nil {
		return nil, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", dup)
	}
	return New(os.NewFile(uintptr(fd), master.Name())), nil
}

// Who a stream belongs to. It never changes once it is set.
const (
	unowned int32 = iota
	byCalls
	byConnection
)

// New returns a Stream that takes f over. f must be such that a deadline ends
// its reads and writes: nonblocking, and of this Stream alone.
func New(f *os.File) *Stream {
	raw, err := f.SyscallConn()
	if err != nil {
		raw = closed{}
	}
	s := &Stream{file: f, raw: raw, reading: make(chan struct{}, 1), writing: make(chan struct{}, 1)}
	s.reading <- struct{}{}
	s.writing <- struct{}{}
	return s
}

// closed is a file that was closed before it became a Stream.
type closed struct{}

func (closed) Control(func(uintptr)) error    { return os.ErrClosed }
func (closed) Read(func(uintptr) bool) error  { return os.ErrClosed }
func (closed) Write(func(uintptr) bool) error { return os.ErrClosed }

// claim makes the stream the owner's, or tells that it is another's.
func (s *Stream) claim(owner int32) bool {
	return s.owner.CompareAndSwap(unowned, owner) || s.owner.Load() == owner
}

var errConnected = fmt.Errorf("a connection has the stream: %w", errdefs.ErrFailedPrecondition)

// Read waits for at least one byte. The end of the stream is io.EOF, also when
// it was closed from this side and for a process without this stream (nil).
func (s *Stream) Read(ctx context.Context, buf []byte) (int, error) {
	if s == nil {
		return 0, io.EOF
	}
	if !s.claim(byCalls) {
		return 0, errConnected
	}
	n, err := turn(ctx, s.reading, s.file.SetReadDeadline, func() (int, error) { return s.read(buf) })
	if errors.Is(err, os.ErrClosed) {
		return n, io.EOF
	}
	return n, err
}

// read reads the file. With the end it closes it: a process that has ended
// should cost no descriptor.
func (s *Stream) read(buf []byte) (int, error) {
	n, err := toEnd(rawio.ReadWriter{Raw: s.raw}, buf)
	if errors.Is(err, io.EOF) {
		s.ended.Store(true)
		_ = s.file.Close()
	}
	return n, err
}

// toEnd is a Read for which the end of a terminal, which no process has open any
// more, is io.EOF.
//
// The kernel says EIO then, and may say it too early: it looks for data first and
// for who has the terminal open second (n_tty_wait_for_input in
// drivers/tty/n_tty.c), and the last process may write and end in between. What
// that one wrote is there with the next read, which comes after its end.
func toEnd(r io.Reader, buf []byte) (int, error) {
	n, err := r.Read(buf)
	if n == 0 && errors.Is(err, unix.EIO) {
		n, err = r.Read(buf)
	}
	if n == 0 && errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

// Write waits until the process has taken all of data.
func (s *Stream) Write(ctx context.Context, data []byte) (int, error) {
	if s == nil {
		return 0, fmt.Errorf("the process has no standard input: %w", errdefs.ErrFailedPrecondition)
	}
	if !s.claim(byCalls) {
		return 0, errConnected
	}
	n, err := turn(ctx, s.writing, s.file.SetWriteDeadline, func() (int, error) { return rawio.Write(s.raw, data) })
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

// CloseInput ends the input of a process by a call.
func (s *Stream) CloseInput() error {
	if s != nil && !s.claim(byCalls) {
		return errConnected
	}
	s.Close()
	return nil
}

// Ended reports whether everything was read, and its end.
func (s *Stream) Ended() bool { return s == nil || s.ended.Load() }

// Resize sets the size of a terminal, in characters.
func (s *Stream) Resize(rows, columns uint16) error {
	var ioctl error
	if err := s.raw.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}); err != nil {
		return fmt.Errorf("the terminal is closed: %w", errdefs.ErrFailedPrecondition)
	}
	return os.NewSyscallError("ioctl(TIOCSWINSZ)", ioctl)
}

// Close ends the stream, whoever has it; a read or write under way returns.
func (s *Stream) Close() {
	if s != nil {
		_ = s.file.Close()
	}
}
