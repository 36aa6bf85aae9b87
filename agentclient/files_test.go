package agentclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// filesPair is a connection for an operation, whose guest's end reads the request
// and then does what a test says.
func filesPair(t *testing.T, guest func(net.Conn, streamwire.Request)) net.Conn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	host, end := netConn(t, fds[0]), netConn(t, fds[1])
	var serving sync.WaitGroup
	serving.Go(func() {
		defer end.Close()
		r, err := streamwire.ReadRequest(end)
		if err != nil {
			t.Error(err)
			return
		}
		guest(end, r)
	})
	t.Cleanup(func() {
		_ = host.Close()
		serving.Wait()
	})
	return host
}

// receive reads frames to their end.
func receive(conn net.Conn) (all []byte, err error) {
	var f streamwire.Frame
	for {
		data, err := f.Receive(conn)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, data...)
	}
}

func TestUnpackSendsAllAndHasTheLastAnswer(t *testing.T) {
	want := bytes.Repeat([]byte("archive"), 30000)
	for name, refusal := range map[string]error{"all is well": nil, "no room": fmt.Errorf("no room: %w", errdefs.ErrResourceExhausted)} {
		conn := filesPair(t, func(c net.Conn, r streamwire.Request) {
			_ = streamwire.WriteAnswer(c, nil)
			got, err := receive(c)
			if err != nil || !bytes.Equal(got, want) || r.Operation != streamwire.Unpack || r.Path != "/p" {
				t.Errorf("%+v: %d bytes, %v", r, len(got), err)
			}
			_ = streamwire.WriteAnswer(c, refusal)
		})
		err := Unpack(t.Context(), conn, streamwire.Request{Container: "c", Path: "/p"}, bytes.NewReader(want))
		if (err == nil) != (refusal == nil) || refusal != nil && !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnArchiveThatCannotBeReadHasNoEnd(t *testing.T) {
	conn := filesPair(t, func(c net.Conn, _ streamwire.Request) {
		_ = streamwire.WriteAnswer(c, nil)
		if _, err := receive(c); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the guest sees %v", err)
		}
	})
	broken := io.MultiReader(strings.NewReader("half"), errorReader{})
	if err := Unpack(t.Context(), conn, streamwire.Request{Container: "c", Path: "/p"}, broken); !errors.Is(err, errBroken) {
		t.Errorf("%v", err)
	}
}

var errBroken = errors.New("broken")

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, errBroken }

func TestPackReceivesAllOrAnError(t *testing.T) {
	for name, c := range map[string]struct {
		refusal error
		end     bool
		class   error
	}{
		"whole": {nil, true, nil}, "not whole": {nil, false, io.ErrUnexpectedEOF},
		"refused": {fmt.Errorf("nothing there: %w", errdefs.ErrNotFound), true, errdefs.ErrNotFound},
	} {
		conn := filesPair(t, func(conn net.Conn, _ streamwire.Request) {
			if streamwire.WriteAnswer(conn, c.refusal) != nil || c.refusal != nil {
				return
			}
			var f streamwire.Frame
			_ = f.Send(conn, copy(f.Room(), "archive"))
			if c.end {
				_ = streamwire.SendEnd(conn)
			}
		})
		var out bytes.Buffer
		err := Pack(t.Context(), conn, streamwire.Request{Container: "c", Path: "/p"}, &out)
		if !errors.Is(err, c.class) || c.class == nil && out.String() != "archive" {
			t.Errorf("%s: %q, %v", name, &out, err)
		}
	}
}

func TestAnOperationEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	conn := filesPair(t, func(c net.Conn, _ streamwire.Request) { _, _ = io.Copy(io.Discard, c) })
	if err := Pack(ctx, conn, streamwire.Request{Container: "c"}, io.Discard); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestAForwardWaitsForSomebody(t *testing.T) {
	come := make(chan struct{})
	conn := filesPair(t, func(c net.Conn, _ streamwire.Request) {
		_ = streamwire.WriteAnswer(c, nil)
		<-come
		_ = streamwire.WriteAnswer(c, nil)
		_, _ = io.Copy(io.Discard, c)
	})
	f, err := OpenForward(t.Context(), conn, streamwire.Request{Container: "c", Path: "0"})
	if err != nil {
		t.Fatal(err)
	}
	close(come)
	if err := f.Wait(); err != nil {
		t.Error(err)
	}
	f.Close()
}

func TestAForwardThatIsClosedWaitsForNobody(t *testing.T) {
	conn := filesPair(t, func(c net.Conn, _ streamwire.Request) {
		_ = streamwire.WriteAnswer(c, nil)
		_, _ = io.Copy(io.Discard, c)
	})
	f, err := OpenForward(t.Context(), conn, streamwire.Request{Container: "c", Path: "0"})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, f.Close)
	if err := f.Wait(); err == nil {
		t.Error("somebody came")
	}
}

func TestFetchHasTheContentAndNoMoreThanItMayHave(t *testing.T) {
	for _, size := range []int{0, 5, streamwire.MaxFetch, streamwire.MaxFetch + 1} {
		want := bytes.Repeat([]byte("m"), size)
		conn := filesPair(t, func(c net.Conn, r streamwire.Request) {
			if r.Operation != streamwire.Fetch || r.Path != "3" {
				t.Errorf("%+v", r)
			}
			_ = streamwire.WriteAnswer(c, nil)
			var f streamwire.Frame
			for rest := want; len(rest) > 0; {
				n := copy(f.Room(), rest)
				if f.Send(c, n) != nil {
					return // the host has heard enough
				}
				rest = rest[n:]
			}
			_ = streamwire.SendEnd(c)
		})
		got, err := Fetch(t.Context(), conn, streamwire.Request{Container: "c", Path: "3"})
		if tooMuch := size > streamwire.MaxFetch; (err != nil) != tooMuch || !tooMuch && !bytes.Equal(got, want) {
			t.Errorf("%d bytes arrive as %d, %v", size, len(got), err)
		}
	}
}

func TestRemoveHasTheGuestsAnswer(t *testing.T) {
	for _, refusal := range []error{nil, fmt.Errorf("no: %w", errdefs.ErrInvalidArgument)} {
		conn := filesPair(t, func(c net.Conn, r streamwire.Request) {
			if r.Operation != streamwire.Remove {
				t.Errorf("%+v", r)
			}
			_ = streamwire.WriteAnswer(c, refusal)
		})
		err := Remove(t.Context(), conn, streamwire.Request{Container: "c", Path: "3/x"})
		if (err != nil) != (refusal != nil) || refusal != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v, want %v", err, refusal)
		}
	}
}
