// Package stdio carries the streams of one process between the places on the
// host that containerd names and a process in the guest.
//
// An IO owns the fifo ends and files that it opened, the logging program that
// it started, and one goroutine per stream; Close ends them all. Methods may be
// called from any goroutine. The package knows neither the agent's protocol nor
// containerd's API: the guest's side is the Guest interface, the host's side
// three places, and streams that clients open to the shim the Remote interface.
// It holds one buffer for each stream and nothing else of what passes.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// chunk is how much is asked of the guest at once. The default capacity of a
// pipe is 64 KiB, so more would only wait in the shim's memory.
const chunk = 64 << 10

// fewBytes is how much is asked for before that was not enough: most streams carry
// nothing for most of their time, and a buffer waits with each of them.
const fewBytes = 4 << 10

// enough is buf, or a larger one if n bytes have filled it.
func enough(buf []byte, n int) []byte {
	if n == fewBytes && len(buf) == fewBytes {
		return make([]byte, chunk)
	}
	return buf
}

// quiet is how long the output of a process that has ended must have nothing
// more, although somebody still has it open, to count as handed over. A process
// that the ended one left behind may write to it for as long as it likes.
const quiet = 2 * time.Second

// ErrStuck is returned by Drain when nobody reads the output that is left.
var ErrStuck = errors.New("output was not taken")

// Paths are the streams' places on the host as containerd names them: empty for
// a stream that nobody wants, or
//
//	/path, fifo:///path        a fifo, or for an output a file that exists
//	file:///path               a file that output is appended to
//	binary:///path?arg=value   a logging program, for outputs (see logger)
//	ttrpc+unix://…?streaming_id=id   a stream that a client opens to the shim
type Paths struct {
	Stdin, Stdout, Stderr string
	Terminal              bool // Stdout carries both outputs, Stderr is not used
}

// Guest is the process's side. Reads return io.EOF after the last byte; any
// other error ends the stream too. WriteStdin returns an error that wraps
// ErrNoReader when the process takes no more.
type Guest interface {
	ReadStdout(ctx context.Context, buf []byte) (int, error)
	ReadStderr(ctx context.Context, buf []byte) (int, error)
	WriteStdin(ctx context.Context, data []byte) (int, error)
	CloseStdin(ctx context.Context) error
}

// ErrNoReader is wrapped by WriteStdin of a Guest when the process has closed
// its input or has ended. It is no fault.
var ErrNoReader = errors.New("the process takes no more input")

// Options are what Open has to know besides the places.
type Options struct {
	// ID and Namespace are those of the container, for logging programs.
	ID, Namespace string
	// Deadline bounds the start of a logging program.
	Deadline time.Duration
	// Remote has the streams that clients open to the shim; nil if there can
	// be none.
	Remote Remote
	// Warn is called, from any goroutine, with errors that concern nobody but
	// the log.
	Warn func(error)
}

// Remote finds the streams that clients open to the shim, by their ids.
type Remote interface {
	Claim(id string) (RemoteStream, error)
}

// RemoteStream is a stream that clients open to the shim. It lasts until Close.
type RemoteStream interface {
	Read(ctx context.Context, buf []byte) (int, error)
	Write(ctx context.Context, data []byte) (int, error)
	// Finish makes Read return io.EOF when the client has no more.
	Finish()
	Close()
}

// IO is the streams of one process.
type IO struct {
	ctx    context.Context
	cancel context.CancelFunc
	warn   func(error)

	stdin   input    // nil if there is none
	outputs []output // none of them nil
	closers []func() // what Open made, undone in reverse

	moved   atomic.Int64 // bytes handed over, to see progress
	asking  atomic.Int32 // outputs that wait for the guest
	copying atomic.Int32 // outputs that have not ended
	copiers sync.WaitGroup
	drained chan struct{} // closed when every output has ended

	closing sync.Once
	mu      sync.Mutex
	closed  bool // Start comes too late
}

// input is the host's side of a standard input.
type input interface {
	// read returns io.EOF when no more comes.
	read(ctx context.Context, buf []byte) (int, error)
	// finish says that no client is to come any more. It may be called more
	// than once, and does not wait.
	finish()
}

// output is the host's side of an output.
type output struct {
	name string // for the log
	// open waits until somebody takes what is written, where that is so.
	open func(context.Context) (io.WriteCloser, error)
	read func(Guest, context.Context, []byte) (int, error)
}

// Open checks the places and opens what can be opened without waiting for the
// other end, and begins to wait for that of the rest. ctx bounds it and nothing
// later. The caller must Close the IO.
func Open(ctx context.Context, p Paths, o Options) (_ *IO, err error) {
	life, cancel := context.WithCancel(context.Background())
	s := &IO{ctx: life, cancel: cancel, warn: o.Warn, drained: make(chan struct{})}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.stdin, err = s.openInput(p.Stdin, o); err != nil {
		return nil, fmt.Errorf("stdin: %w", err)
	}
	if err := s.openOutputs(ctx, p, o); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *IO) onClose(f func()) { s.closers = append(s.closers, f) }

// Start begins to carry the streams. It is called once, when the guest has the
// process, and does not wait. After Close it does nothing.
func (s *IO) Start(g Guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.copiers.Go(func() { s.copyIn(g) })
	s.copying.Store(int32(len(s.outputs)))
	var outputs sync.WaitGroup
	for _, o := range s.outputs {
		outputs.Go(func() {
			s.copyOut(g, o)
			s.copying.Add(-1)
		})
	}
	s.copiers.Go(func() {
		outputs.Wait()
		close(s.drained)
	})
}

// CloseStdin says that no client is to come any more: the process reads end of
// file when the one of the moment has closed its end too and everything before
// it is read. It may be called more than once.
func (s *IO) CloseStdin() {
	if s.stdin != nil {
		s.stdin.finish()
	}
}

// Drain waits until every byte of output has been handed over: until the
// outputs have ended, or have been silent for a while with nothing on the way,
// since others than the process have them open. It gives up, with ErrStuck,
// when nothing has moved for the duration stuck although something is there. It
// is called after the process has exited and after Start.
func (s *IO) Drain(stuck time.Duration) error {
	const looks = 4 // per shortest wait
	ticker := time.NewTicker(min(quiet, stuck) / looks)
	defer ticker.Stop()
	last, since := s.moved.Load(), time.Now()
	for {
		select {
		case <-s.drained:
			return nil
		case now := <-ticker.C:
			// Asked first: what it reads moves afterwards.
			silent := s.asking.Load() == s.copying.Load()
			moved := s.moved.Load()
			switch {
			case moved != last:
				last, since = moved, now
			case silent && now.Sub(since) >= quiet:
				return nil
			case !silent && now.Sub(since) >= stuck:
				return fmt.Errorf("%w for %s", ErrStuck, stuck)
			}
		}
	}
}

// Abort ends every stream at once and waits for nothing. Close must follow.
func (s *IO) Abort() { s.cancel() }

// Close ends every stream at once and waits until its goroutines are gone, and
// the logging program, which has a while to end by itself. It may be called more
// than once.
func (s *IO) Close() {
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.cancel()
		s.CloseStdin()
		for _, f := range slices.Backward(s.closers) {
			f()
		}
		s.copiers.Wait()
	})
}

func (s *IO) copyIn(g Guest) {
	if s.stdin != nil {
		buf := make([]byte, fewBytes)
		for {
			n, err := s.stdin.read(s.ctx, buf)
			if n > 0 {
				if _, werr := g.WriteStdin(s.ctx, buf[:n]); werr != nil {
					if !errors.Is(werr, ErrNoReader) {
						s.complain("stdin", werr)
					}
					return
				}
				buf = enough(buf, n)
			}
			if err != nil {
				break
			}
		}
	}
	if s.ctx.Err() == nil {
		if err := g.CloseStdin(s.ctx); err != nil && !errors.Is(err, ErrNoReader) {
			s.complain("close stdin", err)
		}
	}
}

// copyOut reads the guest's stream to its end whatever becomes of the reader
// on the host: a process must not block because nobody looks.
func (s *IO) copyOut(g Guest, o output) {
	w, err := o.open(s.ctx)
	if err != nil {
		s.complain(o.name, err)
		w = discard{}
	}
	defer func() { w.Close() }()
	buf := make([]byte, fewBytes)
	for {
		s.asking.Add(1)
		n, err := o.read(g, s.ctx, buf)
		s.asking.Add(-1)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				s.complain(o.name, werr)
				w.Close()
				w = discard{}
			}
			s.moved.Add(int64(n))
			buf = enough(buf, n)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.complain(o.name, err)
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

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) Close() error                { return nil }
