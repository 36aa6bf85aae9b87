package streaming

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/containerd/v2/core/streaming/proxy"
	transfer "github.com/containerd/containerd/v2/core/transfer/streaming"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// serve returns a service and what opens a stream of it as the CRI does: by
// containerd's own client, over a connection of its own.
func serve(t *testing.T) (*Service, func(id string) (streaming.Stream, func())) {
	t.Helper()
	s := New()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	s.Register(server)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(context.Background(), l) })
	t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	return s, func(id string) (streaming.Stream, func()) {
		t.Helper()
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		c := ttrpc.NewClient(conn)
		stream, err := proxy.NewStreamCreator(c).Create(deadline(t), id)
		if err != nil {
			t.Fatal(err)
		}
		return stream, func() { _ = c.Close() }
	}
}

func claim(t *testing.T, s *Service, id string) *Stream {
	t.Helper()
	st, err := s.Claim(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

func random(n int) []byte {
	data := make([]byte, n)
	rand.Read(data)
	return data
}

func TestOutputReachesContainerdsClientWholeAndEnds(t *testing.T) {
	s, dial := serve(t)
	ctx := deadline(t)
	stream, hangUp := dial("c-stdout") // before the process is there
	defer hangUp()
	st := claim(t, s, "c-stdout")
	want := random(5*window + 77)
	go func() {
		if n, err := st.Write(ctx, want); n != len(want) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
		st.Close()
	}()
	readCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	got, err := io.ReadAll(transfer.ReadByteStream(readCtx, stream))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, or others: %v", len(got), len(want), err)
	}
}

func TestInputComesFromContainerdsClientAndEndsAfterFinish(t *testing.T) {
	s, dial := serve(t)
	ctx := deadline(t)
	st := claim(t, s, "c-stdin")
	stream, hangUp := dial("c-stdin")
	defer hangUp()
	want := random(5*window + 77)
	go func() {
		w := transfer.WriteByteStream(ctx, stream)
		if n, err := w.Write(want); n != len(want) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
		_ = w.Close()
		st.Finish()
	}()
	if got := readAll(ctx, t, st); !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, or others", len(got), len(want))
	}
}

func readAll(ctx context.Context, t *testing.T, st *Stream) []byte {
	t.Helper()
	var got bytes.Buffer
	buf := make([]byte, 4099)
	for {
		n, err := st.Read(ctx, buf)
		got.Write(buf[:n])
		if err == io.EOF {
			return got.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAStreamOutlivesItsClient(t *testing.T) {
	s, dial := serve(t)
	ctx := deadline(t)
	out, in := claim(t, s, "out"), claim(t, s, "in")
	for i := range 3 {
		word := fmt.Sprintf("word %d", i)
		stream, hangUp := dial("out")
		readCtx, cancel := context.WithCancel(ctx)
		r := transfer.ReadByteStream(readCtx, stream)
		if _, err := out.Write(ctx, []byte(word)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := r.Read(buf); string(buf[:n]) != word || err != nil {
			t.Errorf("client %d reads %q, %v", i, buf[:n], err)
		}
		cancel()
		hangUp()

		stream, hangUp = dial("in")
		w := transfer.WriteByteStream(ctx, stream)
		wrote := make(chan error, 1)
		go func() {
			_, err := w.Write([]byte(word))
			wrote <- err
		}()
		if n, err := in.Read(ctx, buf); string(buf[:n]) != word || err != nil {
			t.Errorf("client %d: the process reads %q, %v", i, buf[:n], err)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		hangUp()
	}
	in.Finish()
	if got := readAll(ctx, t, in); len(got) > 0 {
		t.Errorf("%q after the end", got)
	}
}

func TestWhoWaitsForAClientCanBeToldToStop(t *testing.T) {
	s, _ := serve(t)
	st := claim(t, s, "id")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := st.Write(ctx, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	if _, err := st.Read(ctx, make([]byte, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	st.Close()
	st.Close()
	if _, err := st.Write(t.Context(), []byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("after Close: %v", err)
	}
}

func TestAnIdIsClaimedOnceAtATime(t *testing.T) {
	s := New()
	st := claim(t, s, "id")
	if _, err := s.Claim("id"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second claim: %v", err)
	}
	st.Close()
	claim(t, s, "id")
	for _, id := range []string{"", string(make([]byte, maxID+1))} {
		if _, err := s.Claim(id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("id of %d bytes: %v", len(id), err)
		}
	}
}

func TestStreamsThatNobodyClaimsAreBoundedAndForgotten(t *testing.T) {
	s := New()
	var clients []*client
	for i := range maxUnclaimed {
		c := newClient(nil)
		if _, err := s.attach(fmt.Sprint(i), c); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	if _, err := s.attach("one more", newClient(nil)); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one more: %v", err)
	}
	claim(t, s, "7")
	for i, c := range clients {
		s.left(s.streams[fmt.Sprint(i)], c)
	}
	if len(s.streams) != 1 || s.unclaimed != 0 {
		t.Errorf("%d streams are left, %d unclaimed", len(s.streams), s.unclaimed)
	}
}

func TestAClientThatSendsMoreThanItMayIsDropped(t *testing.T) {
	c := newClient(nil)
	c.granted = 3
	if !c.take([]byte("abc")) || c.take([]byte("d")) {
		t.Error("the window does not hold")
	}
}
