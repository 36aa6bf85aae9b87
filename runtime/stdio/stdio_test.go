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
	s, err := Open(t.Context(), p, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func testOptions(t *testing.T) Options {
	return Options{ID: "c1", Namespace: "ns", Deadline: 20 * time.Second, Warn: func(err error) { t.Log(err) }}
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

// TestAClientsOpenDoesNotWaitForOutput: a client that opens a fifo when there is
// something to read may be too late.
func TestAClientsOpenDoesNotWaitForOutput(t *testing.T) {
	out, errs := mkfifo(t, "out"), mkfifo(t, "err")
	opened := make(chan error, 2)
	for _, path := range []string{out, errs} {
		go func() {
			f, err := os.Open(path)
			if err == nil {
				err = f.Close()
			}
			opened <- err
		}()
	}
	open(t, Paths{Stdout: out, Stderr: errs})
	for range 2 {
		if err := receive(t, opened); err != nil {
			t.Error(err)
		}
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

func TestPlacesThatCannotBeAreRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		paths Paths
		is    func(error) bool
	}{
		{Paths{Stdout: dir}, errdefs.IsInvalidArgument},
		{Paths{Stdout: "relative"}, errdefs.IsNotImplemented},
		{Paths{Stdout: "http://host/log"}, errdefs.IsNotImplemented},
		{Paths{Stderr: "file://host/log"}, errdefs.IsInvalidArgument},
		{Paths{Stderr: "file:///a/../b"}, errdefs.IsInvalidArgument},
		{Paths{Stdout: "binary://relative"}, errdefs.IsInvalidArgument},
		{Paths{Stdout: "binary:///nowhere/logger"}, func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		{Paths{Stdout: "/nowhere/fifo"}, func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		{Paths{Stdout: "ttrpc+unix:///s"}, errdefs.IsInvalidArgument},
		{Paths{Stdout: "ttrpc+unix:///s?streaming_id=x"}, errdefs.IsNotImplemented}, // without Remote
		{Paths{Stdin: file}, errdefs.IsInvalidArgument},
		{Paths{Stdin: "file://" + file}, errdefs.IsInvalidArgument},
	} {
		if s, err := Open(t.Context(), tc.paths, testOptions(t)); err == nil || !tc.is(err) {
			t.Errorf("%+v: %v", tc.paths, err)
			if s != nil {
				s.Close()
			}
		}
	}
}

func TestTheEndOfTheProcessIsNotHeldUpByWhoIsLeftAndSilent(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	s := open(t, Paths{Stdout: "file://" + out, Terminal: true})
	g := newFakeGuest()
	s.Start(g)
	g.stdout.data <- []byte("last words") // and nobody closes it
	begun := time.Now()
	if err := s.Drain(time.Hour); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < quiet {
		t.Errorf("it counted as silent after %s", took)
	}
	if data, err := os.ReadFile(out); string(data) != "last words" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	g.stdout.data <- []byte(", and more") // is still carried
	close(g.stdout.data)
	if err := s.Drain(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(out); string(data) != "last words, and more" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
}

func TestFilesAreAppendedTo(t *testing.T) {
	dir := t.TempDir()
	existing := filepath.Join(dir, "existing")
	if err := os.WriteFile(existing, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ out, err, file, want string }{
		{"file://" + dir + "/new/file", "", dir + "/new/file", "out\n"},
		{existing, "", existing, "before\nout\n"},
		{"file://" + existing, "file://" + existing, existing, "before\nout\nout\nerr\n"},
		{"/dev/null", "file://" + dir + "/err", dir + "/err", "err\n"},
	} {
		s := open(t, Paths{Stdout: tc.out, Stderr: tc.err})
		g := newFakeGuest()
		s.Start(g)
		g.stdout.data <- []byte("out\n")
		close(g.stdout.data)
		waitMoved(t, s, 4)
		g.stderr.data <- []byte("err\n")
		close(g.stderr.data)
		if err := s.Drain(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if data, err := os.ReadFile(tc.file); string(data) != tc.want || err != nil {
			t.Errorf("%s, %s: %q, %v", tc.out, tc.err, data, err)
		}
	}
}

// waitMoved waits until so many bytes were handed over.
func waitMoved(t *testing.T, s *IO, n int64) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); s.moved.Load() < n; {
		select {
		case <-time.After(time.Millisecond):
		case <-time.After(time.Until(end)):
			t.Fatalf("%d bytes of %d within 20 s", s.moved.Load(), n)
		}
	}
}

// fakeRemote is streams that clients open to the shim, each a pair of channels.
type fakeRemote map[string]*fakeStream

type fakeStream struct {
	in       chan []byte
	out      bytes.Buffer
	finished chan struct{}
	closed   bool
}

func (r fakeRemote) Claim(id string) (RemoteStream, error) {
	if s, ok := r[id]; ok {
		return s, nil
	}
	return nil, errdefs.ErrNotFound
}

func (s *fakeStream) Read(ctx context.Context, buf []byte) (int, error) {
	select {
	case data := <-s.in:
		return copy(buf, data), nil
	case <-s.finished:
		return 0, io.EOF
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (s *fakeStream) Write(_ context.Context, data []byte) (int, error) { return s.out.Write(data) }
func (s *fakeStream) Finish() {
	select {
	case <-s.finished:
	default:
		close(s.finished)
	}
}
func (s *fakeStream) Close() { s.closed = true }

func TestStreamsOfClientsAreCarriedAndClosed(t *testing.T) {
	in, out := &fakeStream{in: make(chan []byte, 1), finished: make(chan struct{})}, &fakeStream{}
	o := testOptions(t)
	o.Remote = fakeRemote{"c-in": in, "c-out": out}
	s, err := Open(t.Context(), Paths{
		Stdin: "ttrpc+unix:///run/s.sock?streaming_id=c-in", Stdout: "ttrpc+unix:///run/s.sock?streaming_id=c-out", Terminal: true,
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	g := newFakeGuest()
	s.Start(g)
	in.in <- []byte("hello")
	if got := receive(t, g.stdin.data); string(got) != "hello" {
		t.Errorf("stdin %q", got)
	}
	s.CloseStdin()
	if got := receive(t, g.stdin.data); got != nil {
		t.Errorf("stdin has %q after its end", got)
	}
	g.stdout.data <- []byte("bye")
	close(g.stdout.data)
	if err := s.Drain(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	if out.out.String() != "bye" || !out.closed {
		t.Errorf("output %q, closed %v", out.out.String(), out.closed)
	}
	s.Close()
	if !in.closed {
		t.Error("the input is not given back")
	}
}

func TestAProcessThatTakesNoInputIsNoFault(t *testing.T) {
	in := mkfifo(t, "in")
	o := testOptions(t)
	o.Warn = func(err error) { t.Errorf("warned: %v", err) }
	s, err := Open(t.Context(), Paths{Stdin: in, Terminal: true}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	refused := make(chan struct{})
	s.Start(deafGuest{newFakeGuest(), refused})
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	receive(t, refused)
}

// deafGuest is a fakeGuest that has closed its input.
type deafGuest struct {
	*fakeGuest
	refused chan struct{}
}

func (g deafGuest) WriteStdin(context.Context, []byte) (int, error) {
	close(g.refused)
	return 0, ErrNoReader
}
