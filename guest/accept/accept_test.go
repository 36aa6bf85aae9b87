package accept

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 10 * time.Second

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(timeout))
	return conn
}

// each runs Each; its result comes from the channel.
func each(ctx context.Context, l net.Listener, handle func(context.Context, net.Conn)) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- Each(ctx, l, handle) }()
	return ended
}

func result(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(timeout):
		t.Fatal("Each does not return")
		return nil
	}
}

func TestConnectionsAreHandledAtTheSameTime(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	l := listen(t)
	both := make(chan struct{})
	ended := each(ctx, l, func(_ context.Context, conn net.Conn) {
		select {
		case both <- struct{}{}: // one of the two gives,
		case <-both: // the other takes
		case <-time.After(timeout):
			return
		}
		_, _ = conn.Write([]byte("met"))
	})
	first, second := dial(t, l), dial(t, l)
	for _, conn := range []net.Conn{first, second} {
		if said, err := io.ReadAll(conn); err != nil || string(said) != "met" {
			t.Errorf("a connection got %q, %v", said, err)
		}
	}
	cancel()
	if err := result(t, ended); err != nil {
		t.Error(err)
	}
}

func TestAConnectionIsClosedAfterItsHandler(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	l := listen(t)
	ended := each(ctx, l, func(context.Context, net.Conn) {})
	if _, err := dial(t, l).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the host reads %v", err)
	}
	cancel()
	if err := result(t, ended); err != nil {
		t.Error(err)
	}
}

func TestTheEndOfTheContextEndsHandlersBeforeEachReturns(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	l := listen(t)
	reading, done := make(chan struct{}), false
	ended := each(ctx, l, func(_ context.Context, conn net.Conn) {
		close(reading)
		_, _ = conn.Read(make([]byte, 1)) // the host says nothing
		done = true
	})
	conn := dial(t, l)
	<-reading
	cancel()
	if err := result(t, ended); err != nil {
		t.Error(err)
	}
	if !done {
		t.Error("Each returned before its handler")
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the host reads %v", err)
	}
	if _, err := net.Dial("unix", l.Addr().String()); err == nil {
		t.Error("the listener still listens")
	}
}

func TestAListenerThatFailsEndsHandlersAndIsTheError(t *testing.T) {
	l := listen(t)
	reading := make(chan struct{})
	ended := each(context.Background(), l, func(ctx context.Context, _ net.Conn) {
		close(reading)
		<-ctx.Done()
	})
	dial(t, l)
	<-reading
	l.Close()
	if err := result(t, ended); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Each says %v, not that its listener is closed", err)
	}
}
