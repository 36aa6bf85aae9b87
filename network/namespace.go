package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	// ErrInUse is wrapped when another sandbox works in the network namespace.
	ErrInUse = errors.New("network namespace is used by another sandbox")
	// ErrNoNamespace is wrapped when a path leads to no network namespace, or to
	// none any more.
	ErrNoNamespace = errors.New("no network namespace")
	// ErrHost is wrapped when the namespace is that of this process, whose
	// interfaces are the host's.
	ErrHost = errors.New("network namespace of the host cannot be given to a virtual machine")
)

// requestTimeout bounds one request to the kernel.
const requestTimeout = 10 * time.Second

// claim is the name of a Unix socket that whoever works in a namespace is bound
// to. Abstract names belong to a network namespace (unix(7)), and go with the
// process, however that ends.
const claim = "@erofsvm-network"

// Namespace is a network namespace that this process works in. It holds on to
// the namespace until Close, whatever becomes of its path.
type Namespace struct {
	file   *os.File
	socket int
	route  *netlink.Handle // its sockets are in the namespace
}

// Open takes the network namespace that path leads to, such as
// /run/netns/NAME or /proc/PID/ns/net.
func Open(path string) (*Namespace, error) {
	// Not a FIFO to wait for, nor a device to wake.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("open %s: %w", path, ErrNoNamespace)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	if err := check(fd); err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return take(file)
}

// check refuses what is no network namespace, and the host's.
func check(fd int) error {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return ErrNoNamespace
	}
	var theirs, ours unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &theirs), unix.Stat("/proc/thread-self/ns/net", &ours)); err != nil {
		return err
	}
	if theirs.Dev == ours.Dev && theirs.Ino == ours.Ino {
		return ErrHost
	}
	return nil
}

// New makes an empty network namespace. It lives as long as a process or an
// open file is in it.
func New() (*Namespace, error) {
	var file *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return take(file)
}

// take claims the namespace; file is closed on an error.
func take(file *os.File) (*Namespace, error) {
	n := &Namespace{file: file, socket: -1}
	err := n.Inside(func() (err error) {
		if n.socket, err = bindClaim(); err != nil {
			return err
		}
		n.route, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		err = n.route.SetSocketTimeout(requestTimeout)
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("%s: %w", file.Name(), err)
	}
	return n, nil
}

func bindClaim() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: claim})
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.EADDRINUSE) {
		return -1, ErrInUse
	}
	return -1, os.NewSyscallError("bind", err)
}

// File is the namespace, for a process that is to be started in it. It stays the
// Namespace's to close.
func (n *Namespace) File() *os.File { return n.file }

// Close gives the namespace back; what was made in it stays, see Teardown. It
// may be called more than once.
func (n *Namespace) Close() {
	if n.route != nil {
		n.route.Close()
		n.route = nil
	}
	if n.socket >= 0 {
		unix.Close(n.socket)
		n.socket = -1
	}
	n.file.Close()
}

// Inside runs f on a thread in the namespace. It waits for f, which must not lock
// itself to its thread.
func (n *Namespace) Inside(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it: a goroutine that ends while it
// is locked to its thread takes that along, and nobody else can get onto a
// thread with a changed namespace. Not on the main thread, which the runtime
// keeps (runtime/proc.go, mexit): /proc/PID/ns/net of this process would be the
// pod's from then on.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f) // on another one, as this one is taken
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// whole repeats a listing that the kernel says was changed while it was read.
func whole[T any](list func() (T, error)) (T, error) {
	const attempts = 5
	var found T
	var err error
	for range attempts {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return found, err
}
