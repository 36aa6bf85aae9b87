package sandbox

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/agentclient/streamwire/join"
)

// closedPort is one at which nobody in the fake guest listens. Behind the others
// is an echo of what was said, with the port's number.
const closedPort = 9

func (a *fakeAgent) servePorts(conn net.Conn) {
	defer conn.Close()
	port, err := streamwire.ReadPort(conn)
	if err != nil {
		return
	}
	if port == closedPort {
		_ = streamwire.WriteAnswer(conn, errdefs.ErrUnavailable)
		return
	}
	program, guest := net.Pipe()
	defer guest.Close()
	go func() {
		defer program.Close()
		said := make([]byte, 64)
		n, _ := program.Read(said)
		_, _ = fmt.Fprintf(program, "%d %s", port, said[:n])
	}()
	if streamwire.WriteAnswer(conn, nil) == nil {
		_ = join.Join(conn, guest)
	}
}

// fakeLoopback is a loopback to which a test connects.
type fakeLoopback struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *fakeLoopback) Accept() (net.Conn, uint16, error) {
	select {
	case conn := <-l.conns:
		return conn, uint16(80), nil
	case <-l.closed:
		return nil, 0, net.ErrClosed
	}
}

func (l *fakeLoopback) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

type closedLoopback struct{ *fakeLoopback }

func (l closedLoopback) Accept() (net.Conn, uint16, error) {
	conn, _, err := l.fakeLoopback.Accept()
	return conn, closedPort, err
}

func (l *fakeLoopback) dial(t *testing.T) net.Conn {
	t.Helper()
	client, local := net.Pipe()
	l.conns <- local
	t.Cleanup(func() { client.Close() })
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	return client
}

func newFakeLoopback() *fakeLoopback {
	return &fakeLoopback{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func TestConnectionsToThePodReachTheGuest(t *testing.T) {
	w := running(t, newFakeAgent())
	l := newFakeLoopback()
	m := w.machine
	if err := m.spawn(func() { m.servePorts(l) }); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		client := l.dial(t)
		if _, err := client.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, len("80 hello"))
		if _, err := io.ReadFull(client, said); err != nil || string(said) != "80 hello" {
			t.Errorf("%q, %v", said, err)
		}
		client.Close()
	}
	// One that is open when the VM ends, ends with it.
	client := l.dial(t)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	<-l.closed
}

func TestAConnectionToAPortWithoutAListenerIsClosed(t *testing.T) {
	w := running(t, newFakeAgent())
	l := newFakeLoopback()
	m := w.machine
	if err := m.spawn(func() { m.servePorts(closedLoopback{l}) }); err != nil {
		t.Fatal(err)
	}
	if n, err := l.dial(t).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v", n, err)
	}
}
