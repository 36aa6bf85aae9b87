// Package stdio carries the streams of one process between the fifos that
// containerd made on the host and a process in the guest.
//
// An IO owns the fifo ends that it opened and one goroutine per stream; Close
// ends them all. Methods may be called from any goroutine. The package knows
// neither the agent's protocol nor containerd's API: the guest's side is the
// Guest interface, the host's side three paths.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/fifo"
	"golang.org/x/sys/unix"
)

// chunk is how much is asked of the guest at once. The default capacity of a
// pipe is 64 KiB, so more would only wait in the shim's memory.
const chunk = 64 << 10

// ErrStuck is returned by Drain when nobody reads the output that is left.
var ErrStuck = errors.New("output was not taken")

// Paths are the streams' places on the host as containerd names them: a fifo,
// or empty for a stream that nobody wants.
type Paths struct {
	Stdin, Stdout, Stderr string
	Terminal              bool // Stdout carries both outputs, Stderr is not used
}

// Guest is the process's side. Reads return io.EOF after the last byte; any
// other error ends the stream too.
type Guest interface {
	ReadStdout(ctx context.Context, buf []byte) (int, error)
	ReadStderr(ctx context.Context, buf []byte) (int, error)
	WriteStdin(ctx context.Context, data []byte) (int, error)
	CloseStdin(ctx context.Context) error
}

// IO is the streams of one process.
type IO struct {
	ctx    context.Context
	cancel context.CancelFunc
	warn   func(error)

	stdin   *os.File // read end
	keep    *os.File // write end of stdin, so that a client can come back
	keepMu  sync.Mutex
	outputs []output

	moved   atomic.Int64 // bytes handed over, to see progress
	copiers sync.WaitGroup
	drained chan struct{} // closed when every output has ended
}

type output struct {
	path string
	read func(Guest, context.Context, []byte) (int, error)
}

// Open checks the paths and opens what can be opened without waiting for the
// other end. warn is called, from any goroutine, with errors that concern
// nobody but the log. The caller must Close the IO.
func Open(p Paths, warn func(error)) (*IO, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &IO{ctx: ctx, cancel: cancel, warn: warn, drained: make(chan struct{})}
	s.outputs = []output{{path: p.Stdout, read: Guest.ReadStdout}}
	if !p.Terminal {
		s.outputs = append(s.outputs, output{path: p.Stderr, read: Guest.ReadStderr})
	}
	for _, o := range s.outputs {
		if err := checkFifo(o.path); err != nil {
			cancel()
			return nil, fmt.Errorf("output: %w", err)
		}
	}
	if err := s.openStdin(p.Stdin); err != nil {
		cancel()
		return nil, fmt.Errorf("stdin: %w", err)
	}
	return s, nil
}

// openStdin holds a write end as well: otherwise a client that goes away
// without CloseIO would end the stream for the one that attaches next.
func (s *IO) openStdin(path string) error {
	if path == "" {
		return nil
	}
	if err := checkFifo(path); err != nil {
		return err
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		r.Close()
		return err
	}
	s.stdin, s.keep = r, w
	return nil
}

func checkFifo(path string) error {
	if path == "" {
		return nil
	}
	if u, err := url.Parse(path); err == nil && u.Scheme != "" && u.Scheme != "fifo" {
		return fmt.Errorf("%s: streams to %s:// are not supported yet, use a fifo: %w", path, u.Scheme, errdefs.ErrNotImplemented)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeNamedPipe == 0 {
		return fmt.Errorf("%s is not a fifo: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Start begins to carry the streams. It is called once, when the guest has the
// process, and does not wait.
func (s *IO) Start(g Guest) {
	s.copiers.Go(func() { s.copyIn(g) })
	var outputs sync.WaitGroup
	for _, o := range s.outputs {
		outputs.Go(func() { s.copyOut(g, o) })
	}
	s.copiers.Go(func() {
		outputs.Wait()
		close(s.drained)
	})
}

// CloseStdin drops the shim's own write end: the process reads end of file when
// the client has closed its end too and everything before it is read. It may be
// called more than once.
func (s *IO) CloseStdin() {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	if s.keep != nil {
		s.keep.Close()
		s.keep = nil
	}
}

// Drain waits until every byte of output has been handed over. It gives up, with
// ErrStuck, when nothing has moved for the duration stuck. It is called after
// the process has exited and after Start.
func (s *IO) Drain(stuck time.Duration) error {
	timer := time.NewTimer(stuck)
	defer timer.Stop()
	last := s.moved.Load()
	for {
		select {
		case <-s.drained:
			return nil
		case <-timer.C:
			now := s.moved.Load()
			if now == last {
				return fmt.Errorf("%w for %s", ErrStuck, stuck)
			}
			last = now
			timer.Reset(stuck)
		}
	}
}

// Close ends every stream at once and waits until its goroutines are gone. It
// may be called more than once.
func (s *IO) Close() {
	s.cancel()
	s.CloseStdin()
	if s.stdin != nil {
		s.stdin.Close()
	}
	s.copiers.Wait()
}

func (s *IO) copyIn(g Guest) {
	if s.stdin != nil {
		buf := make([]byte, chunk)
		for {
			n, err := s.stdin.Read(buf)
			if n > 0 {
				if _, werr := g.WriteStdin(s.ctx, buf[:n]); werr != nil {
					s.complain("stdin", werr)
					return // the process has closed it, or is gone
				}
			}
			if err != nil {
				break
			}
		}
	}
	if s.ctx.Err() == nil {
		if err := g.CloseStdin(s.ctx); err != nil {
			s.complain("close stdin", err)
		}
	}
}

// copyOut reads the guest's stream to its end whatever becomes of the reader
// on the host: a process must not block because nobody looks.
func (s *IO) copyOut(g Guest, o output) {
	w, err := s.openOutput(o.path)
	if err != nil {
		s.complain(o.path, err)
		w = discard{}
	}
	defer w.Close()
	buf := make([]byte, chunk)
	for {
		n, err := o.read(g, s.ctx, buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				s.complain(o.path, werr)
				w.Close()
				w = discard{}
			}
			s.moved.Add(int64(n))
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.complain(o.path, err)
			}
			return
		}
	}
}

func (s *IO) complain(stream string, err error) {
	if s.ctx.Err() == nil {
		s.warn(fmt.Errorf("stream %s: %w", stream, err))
	}
}

// openOutput waits for a reader, as closing a fifo that nobody has opened yet
// would lose what was written to it. The read end that it holds besides keeps
// the stream open while a client detaches and another attaches.
func (s *IO) openOutput(path string) (io.WriteCloser, error) {
	if path == "" {
		return discard{}, nil
	}
	w, err := fifo.OpenFifo(s.ctx, path, unix.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		w.Close()
		return nil, err
	}
	p := &pipe{w: w, r: r}
	p.stop = context.AfterFunc(s.ctx, p.closeBoth) // unblocks a Write
	return p, nil
}

type pipe struct {
	w, r interface{ Close() error }
	once sync.Once
	stop func() bool
}

func (p *pipe) Write(b []byte) (int, error) { return p.w.(io.Writer).Write(b) }

func (p *pipe) Close() error {
	p.stop()
	p.closeBoth()
	return nil
}

func (p *pipe) closeBoth() {
	p.once.Do(func() {
		p.w.Close()
		p.r.Close()
	})
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) Close() error                { return nil }
