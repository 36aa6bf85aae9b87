package ports

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/agentclient/streamwire/join"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 10 * time.Second

// serving returns how to connect to ports, as the host does.
func serving(t *testing.T) (connect func() net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "ports"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if err := Serve(ctx, l, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		tasks.Wait()
	})
	return func() net.Conn {
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(timeout))
		return conn
	}
}

func ask(conn net.Conn, port uint16) error {
	if err := streamwire.WritePort(conn, port); err != nil {
		return err
	}
	return streamwire.ReadAnswer(conn)
}

// program listens at an address of the loopback, and answers each connection with
// what it was sent, once that has ended.
func program(t *testing.T, address string) (port uint16) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer conn.Close()
				if said, err := io.ReadAll(conn); err == nil {
					_, _ = conn.Write(said)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		tasks.Wait()
	})
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestTheHostReachesAProgramOfEitherFamily(t *testing.T) {
	connect := serving(t)
	for _, address := range []string{"127.0.0.1", "::1"} {
		port := program(t, address)
		conn := connect()
		if err := ask(conn, port); err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		client, local := pair(t)
		var joined sync.WaitGroup
		joined.Go(func() {
			if err := join.Join(conn, local); err != nil {
				t.Error(err)
			}
		})
		if _, err := client.Write([]byte("said")); err != nil {
			t.Error(err)
		}
		if err := client.CloseWrite(); err != nil {
			t.Error(err)
		}
		if said, err := io.ReadAll(client); err != nil || string(said) != "said" {
			t.Errorf("%s: %q, %v", address, said, err)
		}
		joined.Wait()
	}
}

// pair is two ends of a TCP connection.
func pair(t *testing.T) (client *net.TCPConn, local net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(timeout))
	if local, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), local
}

func TestAPortAtWhichNobodyListensIsUnavailable(t *testing.T) {
	connect := serving(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	if err := ask(connect(), port); !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
}

func TestWhatIsNoRequestIsRefused(t *testing.T) {
	conn := serving(t)()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := streamwire.ReadAnswer(conn); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
}

// TestTheEndEndsConnections: that nothing is left is what TestMain looks at.
func TestTheEndEndsConnections(t *testing.T) {
	port := program(t, "127.0.0.1") // waits for its connections after the serving has ended
	conn := serving(t)()
	if err := ask(conn, port); err != nil {
		t.Fatal(err)
	}
}
