package stdio

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/fifo"
	"golang.org/x/sys/unix"
)

// ahead begins with what has to wait now, for when it is needed.
//
// A client's open of a fifo returns when this side opens it, and a client may
// cancel its own once the process has ended (Task.Delete of containerd's client
// does). Were the fifo opened with the first output only, a process that is
// quick could have its output thrown away by a client that has not noticed yet.
func (s *IO) ahead(open func(context.Context) (io.WriteCloser, error)) func(context.Context) (io.WriteCloser, error) {
	var w io.WriteCloser
	var err error
	opened := make(chan struct{})
	s.copiers.Go(func() {
		w, err = open(s.ctx)
		close(opened)
	})
	return func(context.Context) (io.WriteCloser, error) {
		<-opened // no later than the end of s.ctx
		return w, err
	}
}

// openFifoOutput waits for a reader, as closing a fifo that nobody has opened
// yet would lose what was written to it. The read end that it holds besides
// keeps the stream open while a client detaches and another attaches.
func openFifoOutput(ctx context.Context, path string) (io.WriteCloser, error) {
	w, err := fifo.OpenFifo(ctx, path, unix.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		w.Close()
		return nil, err
	}
	p := &fifoOutput{pipe: pipe{WriteCloser: w, r: r}, ctx: ctx}
	p.stop = context.AfterFunc(ctx, p.closeBoth) // unblocks a Write
	return p, nil
}

type pipe struct {
	io.WriteCloser
	r    io.Closer
	once sync.Once
	stop func() bool
}

func (p *pipe) Close() error {
	p.stop()
	p.closeBoth()
	return nil
}

func (p *pipe) closeBoth() {
	p.once.Do(func() {
		p.WriteCloser.Close()
		p.r.Close()
	})
}

const (
	// look is how often a fifo is looked at until it is empty, of which there is
	// no event.
	look = time.Millisecond
	// taking is how long a reader that takes nothing is waited for.
	taking = time.Second
)

// fifoOutput is a fifo, open for writing.
type fifoOutput struct {
	pipe
	ctx context.Context
}

// Close waits until the reader has taken what is in the fifo, unless there is no
// reader, or it takes nothing. Otherwise the end of the process would be told
// before the reader has all output, and clients of containerd close their end when
// they delete a process, whatever is still in it.
func (f *fifoOutput) Close() error {
	f.r.Close() // of those who could read clients are left
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for last, since := -1, time.Now(); f.ctx.Err() == nil; <-ticker.C {
		n, err := unread(f.WriteCloser)
		if err != nil || n == 0 || n == last && time.Since(since) >= taking {
			break
		}
		if n != last {
			last, since = n, time.Now()
		}
	}
	return f.pipe.Close()
}

// unread is how many bytes are in a fifo for a reader, 0 if there is none.
func unread(w io.Writer) (n int, err error) {
	conn, ok := w.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("%T has no descriptor: %w", w, errdefs.ErrInvalidArgument)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		if _, failed = unix.Poll(poll, 0); failed == nil && poll[0].Revents&unix.POLLERR == 0 {
			n, failed = unix.IoctlGetInt(int(fd), unix.TIOCINQ) // FIONREAD by its other name
		}
	})
	if err == nil {
		err = failed
	}
	return n, err
}

// fifoInput is a fifo, open for reading.
type fifoInput struct {
	r    *os.File
	mu   sync.Mutex
	keep *os.File // write end, so that a client can come back; nil when finished
}

// openFifoInput holds a write end as well: otherwise a client that goes away
// without CloseIO would end the stream for the one that attaches next.
func (s *IO) openFifoInput(path string) (input, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeNamedPipe == 0 {
		return nil, fmt.Errorf("%s is not a fifo: %w", path, errdefs.ErrInvalidArgument)
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		r.Close()
		return nil, err
	}
	f := &fifoInput{r: r, keep: w}
	s.onClose(func() {
		f.finish()
		r.Close() // unblocks a read
	})
	return f, nil
}

func (f *fifoInput) read(_ context.Context, buf []byte) (int, error) { return f.r.Read(buf) }

func (f *fifoInput) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keep != nil {
		f.keep.Close()
		f.keep = nil
	}
}
