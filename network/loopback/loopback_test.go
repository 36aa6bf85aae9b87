package loopback

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 10 * time.Second

// namespace is a network namespace with a loopback that is up, and nothing else.
type namespace struct {
	file *os.File
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	need.Root(t, "to make network namespaces")
	n := &namespace{}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.file.Close() })
	return n
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func (n *namespace) File() *os.File { return n.file }

func (n *namespace) Inside(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// dial connects from inside.
func (n *namespace) dial(address string) (conn *net.TCPConn, err error) {
	err = n.Inside(func() (err error) {
		conn, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		return err
	})
	return conn, err
}

func (n *namespace) listen(t *testing.T) *Listener {
	t.Helper()
	l, err := Listen(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func TestConnectionsToAnyPortOfTheLoopbackAreTaken(t *testing.T) {
	n := newNamespace(t)
	l := n.listen(t)
	for address, want := range map[string]uint16{
		"127.0.0.1:80": 80, "127.0.0.1:65535": 65535, "127.255.0.9:8080": 8080, "[::1]:443": 443,
	} {
		client, err := n.dial(address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		conn, port, err := l.Accept()
		if err != nil || port != want {
			t.Fatalf("%s: port %d, %v; want %d", address, port, err, want)
		}
		deadline := time.Now().Add(timeout)
		_, _ = conn.SetDeadline(deadline), client.SetDeadline(deadline)
		if _, err := client.Write([]byte("ask")); err != nil {
			t.Error(err)
		}
		if err := client.CloseWrite(); err != nil {
			t.Error(err)
		}
		if asked, err := io.ReadAll(conn); err != nil || string(asked) != "ask" {
			t.Errorf("%s: %q, %v", address, asked, err)
		}
		if _, err := conn.Write([]byte("answer")); err != nil {
			t.Error(err)
		}
		conn.Close()
		if answer, err := io.ReadAll(client); err != nil || string(answer) != "answer" {
			t.Errorf("%s: %q, %v", address, answer, err)
		}
		client.Close()
	}
}

func TestOtherAddressesOfTheNamespaceAreLeftAlone(t *testing.T) {
	n := newNamespace(t)
	n.listen(t)
	// An address that is the namespace's own, but not of the loopback's net.
	err := n.Inside(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ifr, err := unix.NewIfreq("lo:1")
		if err != nil {
			return err
		}
		if err := ifr.SetInet4Addr([]byte{10, 9, 8, 7}); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, ifr)
	})
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := n.dial("10.9.8.7:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection to another address: %v, %v", conn, err)
	}
}

func TestNothingIsTakenAfterClose(t *testing.T) {
	n := newNamespace(t)
	l := n.listen(t)
	waiting, err := n.dial("127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	for _, address := range []string{"127.0.0.1:80", "[::1]:80"} {
		if _, err := n.dial(address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v", address, err)
		}
	}
	// Nobody is left to answer the one that was not accepted.
	_ = waiting.SetDeadline(time.Now().Add(timeout))
	if n, err := waiting.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestNamespacesDoNotMix(t *testing.T) {
	one, other := newNamespace(t), newNamespace(t)
	taken := one.listen(t)
	if _, err := other.dial("127.0.0.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a namespace without a listener: %v", err)
	}
	other.listen(t)
	client, err := one.dial("127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, port, err := taken.Accept()
	if err != nil || port != 80 {
		t.Fatalf("port %d, %v", port, err)
	}
	conn.Close()
}

// TestAListenerComesAfterAnother, that died perhaps: the kernel takes down what a process had
// attached, and until then two may be attached.
func TestAListenerComesAfterAnother(t *testing.T) {
	n := newNamespace(t)
	first := n.listen(t)
	second := n.listen(t)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	client, err := n.dial("127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, port, err := second.Accept()
	if err != nil || port != 80 {
		t.Fatalf("port %d, %v", port, err)
	}
	conn.Close()
}

func TestAFileThatIsNoNamespaceIsAnError(t *testing.T) {
	n := newNamespace(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if l, err := Listen(&wrong{n, file}); err == nil {
		t.Error("it listens all the same", l.Close())
	}
}

// wrong is a namespace whose file is another.
type wrong struct {
	*namespace
	other *os.File
}

func (w *wrong) File() *os.File { return w.other }
