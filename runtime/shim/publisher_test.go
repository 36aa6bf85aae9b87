package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	forward "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/types/known/emptypb"
)

// fakeContainerd takes events as containerd does, over ttrpc on a Unix socket.
type fakeContainerd struct {
	server *ttrpc.Server
	got    chan *types.Envelope
}

func (f *fakeContainerd) Forward(_ context.Context, r *forward.ForwardRequest) (*emptypb.Empty, error) {
	f.got <- r.Envelope
	return &emptypb.Empty{}, nil
}

func startFakeContainerd(t *testing.T, path string, got chan *types.Envelope) *fakeContainerd {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeContainerd{server: server, got: got}
	forward.RegisterTTRPCEventsService(server, f)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(context.Background(), l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return f
}

// stop lets the calls under way be answered: an event whose reply is lost is
// sent again, as containerd may not have it.
func (f *fakeContainerd) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := f.server.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
}

// expect takes events with these numbers. One whose reply was lost in a restart
// may come a second time.
func (f *fakeContainerd) expect(t *testing.T, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		select {
		case e := <-f.got:
			v, err := typeurl.UnmarshalAny(e.Event)
			if err != nil {
				t.Fatal(err)
			}
			got := v.(*eventsapi.TaskStart).Pid
			if i > 0 && got == uint32(i-1) {
				i--
				continue
			}
			if got != uint32(i) || e.Namespace != "test" || e.Topic != "/tasks/start" {
				t.Fatalf("event %d: got pid %d, %s, namespace %s", i, got, e.Topic, e.Namespace)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("event %d did not come", i)
		}
	}
}

func quiet() *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

func TestEventsArriveInOrderThroughARestartOfContainerd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ttrpc.sock")
	p := newPublisher("unix://"+path, "test", quiet())
	publish := func(from, to int) {
		for i := from; i < to; i++ {
			p.Publish("/tasks/start", &eventsapi.TaskStart{ContainerID: fmt.Sprint(i), Pid: uint32(i)})
		}
	}
	publish(0, 5) // nobody listens yet
	got := make(chan *types.Envelope, 100)
	first := startFakeContainerd(t, path, got)
	first.expect(t, 0, 5)
	first.stop(t)

	publish(5, 20)
	second := startFakeContainerd(t, path, got)
	second.expect(t, 5, 20)
	publish(20, 25)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	second.expect(t, 20, 25) // Close had sent them
}

// TestCloseDoesNotWaitForAContainerdThatIsGone: neither for one whose socket is
// gone, nor for one that left it, nor for the time that ctx has.
func TestCloseDoesNotWaitForAContainerdThatIsGone(t *testing.T) {
	left := filepath.Join(t.TempDir(), "left.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for name, address := range map[string]string{"gone": filepath.Join(t.TempDir(), "nobody.sock"), "left": left, "none": ""} {
		p := newPublisher(address, "test", quiet())
		for range 3 {
			p.Publish("/tasks/start", &eventsapi.TaskStart{})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		if err := p.Close(ctx); err == nil || !strings.Contains(err.Error(), "3") {
			t.Errorf("%s: %v, and three events were lost", name, err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("%s: it took %s", name, took)
		}
	}
}

// TestCloseDoesNotWaitForAContainerdThatIsSilent beyond its context.
func TestCloseDoesNotWaitForAContainerdThatIsSilent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "silent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := newPublisher(path, "test", quiet())
	p.Publish("/tasks/start", &eventsapi.TaskStart{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an event was lost without a word: %v", err)
	}
}
