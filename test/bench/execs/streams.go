package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/test/bench/figures"
)

// chunk is what the shim asks the agent for at once (runtime/stdio).
const chunk = 64 << 10

// slowest is what a stream carries at least, in bytes a second; it makes the
// deadlines.
const slowest = 1 << 20

// way is one of those that bytes go, and returns for how long they went.
type way struct {
	name string
	go_  func(context.Context) (time.Duration, error)
}

// streams sends b.size bytes each way, from and to the same program.
func (b *bench) streams(ctx context.Context) error {
	for _, direction := range []struct {
		title, chart string
		ways         []way
	}{
		{"standard output", "stdout", []way{
			{"calls of the agent (ReadStdout), thrown away", b.outByCalls},
			{"a connection to the agent, thrown away", b.outByWire},
			{"a task of containerd: connection, shim, fifo, client", b.outByTask},
			{"a bare vsock, no pipe and no agent", b.outByVsock},
		}},
		{"standard input", "stdin", []way{
			{"calls of the agent (WriteStdin)", b.inByCalls},
			{"a connection to the agent", b.inByWire},
			{"a task of containerd: client, fifo, shim, connection", b.inByTask},
			{"a bare vsock, no pipe and no agent", b.inByVsock},
		}},
	} {
		rates := b.report.Table(fmt.Sprintf("%d MiB through %s", b.size>>20, direction.title), "MB/s").Draw(figures.Bars, direction.chart, "")
		costs := b.report.Table("processor time for "+direction.title, "ms for 1 MiB, of QEMU", "vhost-device-vsock", "shim").
			Draw(figures.Bars, direction.chart+"-processor", "")
		for range b.runs {
			for _, w := range direction.ways {
				if err := b.send(ctx, w, direction.ways[0].name, rates, costs); err != nil {
					return fmt.Errorf("%s: %s: %w", direction.title, w.name, err)
				}
			}
		}
	}
	return nil
}

// send takes one sample of a way, which is held against another one.
func (b *bench) send(ctx context.Context, w way, against string, rates, costs *figures.Table) error {
	if w.name == against {
		against = ""
	}
	ctx, cancel := context.WithTimeout(b.guest.c.Context(ctx), step+time.Duration(b.size/slowest)*time.Second)
	defer cancel()
	before, err := b.guest.parts.processor()
	if err != nil {
		return err
	}
	took, err := w.go_(ctx)
	if err != nil {
		return err
	}
	after, err := b.guest.parts.processor()
	if err != nil {
		return err
	}
	rate := float64(b.size) / 1e6 / took.Seconds()
	rates.Row(w.name, against).Add(rate)
	each := func(i int) float64 { return milliseconds(after[i]-before[i]) / float64(b.size>>20) }
	cost := costs.Row(w.name, against)
	cost.Add(each(0))
	cost.More = []string{fmt.Sprintf("%.2f", each(1)), fmt.Sprintf("%.2f", each(2))}
	fmt.Printf("  %s: %.1f MB/s, %.1f ms of QEMU for 1 MiB\n", w.name, rate, each(0))
	return nil
}

// pour writes b.size bytes, and swallow reads what there is and tells how much it
// was: programs in C, since Go's runtime makes other threads run in place of one
// that waits for a pipe, which costs more than the pipe where it is emulated.
func (b *bench) pour() []string {
	return []string{"dd", "if=/dev/zero", "bs=64k", "count=" + strconv.FormatInt(b.size>>16, 10)}
}

var swallow = []string{"sh", "-c", "exec dd bs=64k of=/dev/null 2>&1"}

// swallowed finds in what dd says how many bytes it has had.
var swallowed = regexp.MustCompile(`(?m)^(\d+) bytes`)

// arrived checks what a reader tells.
func (b *bench) arrived(text string) error {
	if found := swallowed.FindStringSubmatch(text); found == nil || found[1] != b.bytes() {
		return fmt.Errorf("it has read %q, want %d bytes", text, b.size)
	}
	return nil
}

func (b *bench) bytes() string { return strconv.FormatInt(b.size, 10) }

// counted reads a stream to its end, which must come after b.size bytes, and
// returns the time from the first to the last of them.
func (b *bench) counted(read func([]byte) (int, error)) (time.Duration, error) {
	buf := make([]byte, chunk)
	var begun, last time.Time
	var count int64
	for {
		n, err := read(buf)
		if n > 0 && count == 0 {
			begun = time.Now()
		}
		if n > 0 {
			last = time.Now()
		}
		count += int64(n)
		switch {
		case errors.Is(err, io.EOF) && count == b.size:
			return last.Sub(begun), nil
		case errors.Is(err, io.EOF):
			return 0, fmt.Errorf("%d bytes have arrived, want %d", count, b.size)
		case err != nil:
			return 0, err
		}
	}
}

func (b *bench) outByCalls(ctx context.Context) (time.Duration, error) {
	p, err := b.guest.direct(ctx, b.pour()...)
	if err != nil {
		return 0, err
	}
	took, err := b.counted(func(buf []byte) (int, error) { return b.guest.agent.ReadStdout(ctx, p, buf) })
	return took, errors.Join(err, b.guest.ended(ctx, p))
}

func (b *bench) open(ctx context.Context, p agentclient.Process, kind streamwire.Kind) (*agentclient.Stream, error) {
	conn, err := b.guest.dial(ctx, streamwire.Port)
	if err != nil {
		return nil, err
	}
	return agentclient.OpenStream(ctx, conn, p, kind)
}

func (b *bench) outByWire(ctx context.Context) (time.Duration, error) {
	p, err := b.guest.direct(ctx, b.pour()...)
	if err != nil {
		return 0, err
	}
	s, err := b.open(ctx, p, streamwire.Stdout)
	if err != nil {
		return 0, err
	}
	took, err := b.counted(s.Read)
	s.Close()
	return took, errors.Join(err, b.guest.ended(ctx, p))
}

func (b *bench) outByTask(ctx context.Context) (time.Duration, error) {
	r, w := io.Pipe()
	var took time.Duration
	var counted error
	var reading sync.WaitGroup
	reading.Go(func() { took, counted = b.counted(r.Read) })
	exec, err := b.guest.exec(ctx, cio.NewCreator(cio.WithStreams(nil, w, nothing{})), b.pour()...)
	if err == nil {
		err = exec.finish(ctx) // which waits for the streams
	}
	_ = w.Close()
	reading.Wait()
	return took, errors.Join(err, counted)
}

// vsockPort is one that nobody else has.
const vsockPort = 4000

// byVsock starts pump behind a port and connects to it.
func (b *bench) byVsock(ctx context.Context, do func(io.ReadWriter) (time.Duration, error), args ...string) (took time.Duration, err error) {
	r, w := io.Pipe()
	defer w.Close()
	said := make(chan string, 2)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer r.Close()
	reading.Go(func() {
		defer close(said)
		buf := make([]byte, 100)
		for {
			n, err := r.Read(buf)
			if err != nil {
				return
			}
			said <- string(buf[:n])
		}
	})
	port := strconv.Itoa(vsockPort + b.guest.serial)
	exec, err := b.guest.exec(ctx, cio.NewCreator(cio.WithStreams(nil, w, nothing{})), append([]string{pumpPath, port}, args...)...)
	if err != nil {
		return 0, err
	}
	select {
	case <-said:
	case <-ctx.Done():
		return 0, errors.Join(ctx.Err(), exec.kill(ctx))
	}
	number, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return 0, err
	}
	conn, err := b.guest.dial(ctx, uint32(number))
	if err != nil {
		return 0, errors.Join(err, exec.kill(ctx))
	}
	begun := time.Now()
	took, err = do(conn)
	if err := errors.Join(err, conn.(interface{ CloseWrite() error }).CloseWrite()); err != nil {
		return 0, errors.Join(err, conn.Close(), exec.kill(ctx))
	}
	if took == 0 { // until the other end has it all, and says so
		select {
		case text := <-said:
			err = b.arrived(text)
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return 0, errors.Join(err, conn.Close(), exec.kill(ctx))
		}
		took = time.Since(begun)
	}
	_ = conn.Close()
	return took, exec.finish(ctx)
}

func (b *bench) outByVsock(ctx context.Context) (time.Duration, error) {
	return b.byVsock(ctx, func(conn io.ReadWriter) (time.Duration, error) { return b.counted(conn.Read) }, "out", b.bytes())
}

func (b *bench) inByVsock(ctx context.Context) (time.Duration, error) {
	return b.byVsock(ctx, func(conn io.ReadWriter) (time.Duration, error) {
		_, err := io.CopyBuffer(onlyWriter{conn}, onlyReader{b.source()}, make([]byte, chunk))
		return 0, err
	}, "in")
}

// onlyWriter and onlyReader hide what would make io.CopyBuffer not use its buffer.
type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }

// source has b.size bytes.
func (b *bench) source() io.Reader { return io.LimitReader(zeroes{}, b.size) }

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { return len(p), nil }

// in measures the time from the first write until the process says that it has
// read all.
func (b *bench) in(ctx context.Context, write func(p agentclient.Process) (io.Writer, func() error, error)) (time.Duration, error) {
	p, err := b.guest.direct(ctx, swallow...)
	if err != nil {
		return 0, err
	}
	w, end, err := write(p)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if _, err := io.CopyBuffer(w, onlyReader{b.source()}, make([]byte, chunk)); err != nil {
		return 0, err
	}
	if err := end(); err != nil {
		return 0, err
	}
	var text []byte
	for !swallowed.Match(text) {
		buf := make([]byte, 200)
		n, err := b.guest.agent.ReadStdout(ctx, p, buf)
		if err != nil {
			return 0, fmt.Errorf("after %q: %w", text, err)
		}
		text = append(text, buf[:n]...)
	}
	took := time.Since(begun)
	return took, errors.Join(b.arrived(string(text)), b.guest.ended(ctx, p))
}

type writeFunc func([]byte) (int, error)

func (w writeFunc) Write(p []byte) (int, error) { return w(p) }

func (b *bench) inByCalls(ctx context.Context) (time.Duration, error) {
	return b.in(ctx, func(p agentclient.Process) (io.Writer, func() error, error) {
		return writeFunc(func(data []byte) (int, error) { return b.guest.agent.WriteStdin(ctx, p, data) }),
			func() error { return b.guest.agent.CloseStdin(ctx, p) }, nil
	})
}

func (b *bench) inByWire(ctx context.Context) (time.Duration, error) {
	var s *agentclient.Stream
	took, err := b.in(ctx, func(p agentclient.Process) (_ io.Writer, _ func() error, err error) {
		if s, err = b.open(ctx, p, streamwire.Stdin); err != nil {
			return nil, nil, err
		}
		return writeFunc(s.Write), s.End, nil
	})
	if s != nil {
		s.Close()
	}
	return took, err
}

func (b *bench) inByTask(ctx context.Context) (time.Duration, error) {
	var out strings.Builder
	begun := &beginning{Reader: b.source()}
	exec, err := b.guest.exec(ctx, cio.NewCreator(cio.WithStreams(begun, &out, nothing{})), swallow...)
	if err != nil {
		return 0, err
	}
	// The client's end of the fifo stays open until it is told.
	if err := exec.CloseIO(ctx, client.WithStdinCloser); err != nil {
		return 0, errors.Join(err, exec.kill(ctx))
	}
	if err := exec.finish(ctx); err != nil {
		return 0, err
	}
	return time.Since(begun.at), b.arrived(out.String())
}

// beginning notes when it is first read.
type beginning struct {
	io.Reader
	at time.Time
}

func (r *beginning) Read(p []byte) (int, error) {
	if r.at.IsZero() {
		r.at = time.Now()
	}
	return r.Reader.Read(p)
}
