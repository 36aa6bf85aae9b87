package stdio

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeGuest is a process of the guest: what it writes comes from pipes, what
// it is given goes into one.
type fakeGuest struct {
	stdout, stderr *pipeEnd
	stdin          *pipeEnd
}

// pipeEnd is an in-memory pipe whose reads end with their context, as calls to
// the agent do.
type pipeEnd struct {
	data chan []byte
	rest []byte
}

func newFakeGuest() *fakeGuest {
	return &fakeGuest{newPipeEnd(), newPipeEnd(), newPipeEnd()}
}

func newPipeEnd() *pipeEnd { return &pipeEnd{data: make(chan []byte, 4)} }

func (p *pipeEnd) read(ctx context.Context, buf []byte) (int, error) {
	if len(p.rest) == 0 {
		select {
		case d, ok := <-p.data:
			if !ok {
				return 0, io.EOF
			}
			p.rest = d
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	n := copy(buf, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (g *fakeGuest) ReadStdout(ctx context.Context, b []byte) (int, error) {
	return g.stdout.read(ctx, b)
}

func (g *fakeGuest) ReadStderr(ctx context.Context, b []byte) (int, error) {
	return g.stderr.read(ctx, b)
}

func (g *fakeGuest) WriteStdin(ctx context.Context, b []byte) (int, error) {
	select {
	case g.stdin.data <- bytes.Clone(b):
		return len(b), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (g *fakeGuest) CloseStdin(context.Context) error {
	close(g.stdin.data)
	return nil
}

func mkfifo(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, p Paths) *IO {
	t.Helper()
	s, err := Open(p, func(err error) { t.Log(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// readAll reads a fifo to its end in the background.
func readAll(t *testing.T, path string) <-chan []byte {
	t.Helper()
	got := make(chan []byte, 1)
	go func() {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		got <- data
	}()
	return got
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came within 20 s")
		panic("unreachable")
	}
}

func TestEveryByteIsHandedOverBeforeDrainReturns(t *testing.T) {
	out, errs := mkfifo(t, "out"), mkfifo(t, "err")
	s := open(t, Paths{Stdout: out, Stderr: errs})
	gotOut, gotErr := readAll(t, out), readAll(t, errs)
	g := newFakeGuest()
	s.Start(g)

	want := make([]byte, 3<<20)
	rand.Read(want)
	go func() {
		g.stderr.data <- []byte("oops")
		close(g.stderr.data)
		for data := want; len(data) > 0; {
			n := min(len(data), 100_000)
			g.stdout.data <- data[:n]
			data = data[n:]
		}
		close(g.stdout.data)
	}()
	if err := s.Drain(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if got := receive(t, gotOut); !bytes.Equal(got, want) {
		t.Errorf("stdout: %d bytes arrived of %d, or others", len(got), len(want))
	}
	if got := receive(t, gotErr); string(got) != "oops" {
		t.Errorf("stderr: %q", got)
	}
}

func TestDrainGivesUpWhenNobodyReads(t *testing.T) {
	out := mkfifo(t, "out")
	s := open(t, Paths{Stdout: out, Terminal: true})
	g := newFakeGuest()
	s.Start(g)
	g.stdout.data <- []byte("x")
	close(g.stdout.data)
	if err := s.Drain(50 * time.Millisecond); !errors.Is(err, ErrStuck) {
		t.Errorf("Drain without a reader: %v", err)
	}
	s.Close() // returns: the copier does not hang in open(2)
}

func TestAReaderCanLeaveAndAnotherCome(t *testing.T) {
	out := mkfifo(t, "out")
	s := open(t, Paths{Stdout: out, Terminal: true})
	g := newFakeGuest()
	s.Start(g)
	for _, word := range []string{"first", "second"} {
		r, err := os.OpenFile(out, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		g.stdout.data <- []byte(word)
		buf := make([]byte, 16)
		n, err := r.Read(buf)
		if string(buf[:n]) != word || err != nil {
			t.Errorf("read %q, %v; want %q", buf[:n], err, word)
		}
		r.Close()
	}
	close(g.stdout.data)
	if err := s.Drain(20 * time.Second); err != nil {
		t.Error(err)
	}
}

func TestOutputNobodyWantsIsStillRead(t *testing.T) {
	s := open(t, Paths{})
	g := newFakeGuest()
	s.Start(g)
	for range 100 { // more than the fake's buffer
		g.stdout.data <- make([]byte, 1000)
	}
	close(g.stdout.data)
	close(g.stderr.data)
	if err := s.Drain(20 * time.Second); err != nil {
		t.Error(err)
	}
}

func TestStdinEndsWithCloseIOAfterTheLastByte(t *testing.T) {
	in := mkfifo(t, "in")
	s := open(t, Paths{Stdin: in, Terminal: true})
	g := newFakeGuest()
	s.Start(g)
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, g.stdin.data); string(got) != "hello" {
		t.Errorf("stdin %q", got)
	}
	w.Close()
	select {
	case got := <-g.stdin.data:
		t.Errorf("stdin ended, or has %q, although CloseIO was not called", got)
	case <-time.After(50 * time.Millisecond):
	}
	s.CloseStdin()
	s.CloseStdin()
	if got := receive(t, g.stdin.data); got != nil {
		t.Errorf("stdin has %q after its end", got)
	}
}

func TestNoStdinIsEndOfFileAtOnce(t *testing.T) {
	s := open(t, Paths{Terminal: true})
	g := newFakeGuest()
	s.Start(g)
	if got := receive(t, g.stdin.data); got != nil {
		t.Errorf("stdin has %q", got)
	}
}

func TestCloseEndsEverythingAtOnce(t *testing.T) {
	in, out, errs := mkfifo(t, "in"), mkfifo(t, "out"), mkfifo(t, "err")
	s := open(t, Paths{Stdin: in, Stdout: out, Stderr: errs})
	r, err := os.OpenFile(out, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	g := newFakeGuest()
	s.Start(g)
	g.stdout.data <- make([]byte, 1<<20) // more than the pipe holds: a Write hangs
	done := make(chan struct{})
	go func() {
		s.Close()
		s.Close()
		close(done)
	}()
	receive(t, done)
}

func TestPathsThatAreNoFifosAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		paths Paths
		is    func(error) bool
	}{
		{Paths{Stdout: file}, errdefs.IsInvalidArgument},
		{Paths{Stdout: "binary:///usr/bin/logger"}, errdefs.IsNotImplemented},
		{Paths{Stderr: "file:///var/log/x"}, errdefs.IsNotImplemented},
		{Paths{Stdout: "/nowhere/fifo"}, func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		{Paths{Stdin: file}, errdefs.IsInvalidArgument},
	} {
		if s, err := Open(tc.paths, func(error) {}); err == nil || !tc.is(err) {
			t.Errorf("%+v: %v", tc.paths, err)
			if s != nil {
				s.Close()
			}
		}
	}
}
