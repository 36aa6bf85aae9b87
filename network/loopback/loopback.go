// Package loopback takes every TCP connection that is made to the loopback of a
// pod's network namespace, whatever its port.
//
// That is what a pod in a virtual machine needs for `kubectl port-forward`:
// containerd connects to localhost in the namespace, and the programs that it
// looks for listen in the guest. Which ports those are nobody on the host knows, so
// there is no listener for each, but one that the kernel gives the connections to
// all ports to (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9 and later).
//
// A Listener owns its sockets and the program that is attached to the namespace;
// both go with the process, however that ends. It makes nothing that has a name.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, never the host's: there, connections to all
// ports of localhost would be taken.
type Namespace interface {
	// File is the namespace. It stays the Namespace's.
	File() *os.File
	// Inside runs f on a thread that is in the namespace, and returns what it
	// returned.
	Inside(f func() error) error
}

// acceptPause is how long nothing is accepted after accept(2) has failed.
const acceptPause = 100 * time.Millisecond

// Listener takes the connections. Accept is for one goroutine, Close for any.
type Listener struct {
	steering *steering
	tcp      [listeners]*net.TCPListener
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
	tasks    sync.WaitGroup
}

// Listen returns when connections to 127.0.0.0/8 and ::1 in the namespace lead to
// the Listener, and no longer to what listens there, which in the namespace of a
// virtual machine's pod nothing does. Without IPv6 it is IPv4 alone. The
// namespace may be closed once it has returned.
func Listen(ns Namespace) (*Listener, error) {
	l := &Listener{accepted: make(chan net.Conn), closed: make(chan struct{})}
	err := ns.Inside(l.listen)
	if err == nil {
		l.steering, err = steer(ns.File(), l.tcp)
	}
	if err != nil {
		l.closeSockets()
		return nil, fmt.Errorf("take connections to the loopback of a pod: %w", err)
	}
	for _, tcp := range l.tcp {
		if tcp != nil {
			l.tasks.Go(func() { l.take(tcp) })
		}
	}
	return l, nil
}

// listen makes the sockets, at ports that the kernel chooses.
func (l *Listener) listen() (err error) {
	if l.tcp[keyIP4], err = listenTCP("tcp4", "127.0.0.1:0"); err != nil {
		return err
	}
	l.tcp[keyIP6], err = listenTCP("tcp6", "[::1]:0")
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // no IPv6 in the namespace
	}
	return err
}

func listenTCP(network, address string) (*net.TCPListener, error) {
	var config net.ListenConfig
	// Go's default, which cannot be in a map of sockets (net/core/sock_map.c).
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), network, address)
	if err != nil {
		return nil, err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a listener of type %T", l), l.Close())
	}
	return tcp, nil
}

func (l *Listener) take(tcp *net.TCPListener) {
	for {
		conn, err := tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Of one connection, or for want of descriptors, which takes a while.
			select {
			case <-time.After(acceptPause):
				continue
			case <-l.closed:
				return
			}
		}
		select {
		case l.accepted <- conn:
		case <-l.closed:
			_ = conn.Close()
			return
		}
	}
}

// Accept waits for a connection and returns it with the port that it was made to.
// After Close it returns net.ErrClosed.
func (l *Listener) Accept() (conn net.Conn, port uint16, err error) {
	select {
	case conn := <-l.accepted:
		// The address that was connected to, not the one that was listened at.
		local, ok := conn.LocalAddr().(*net.TCPAddr)
		if !ok {
			return nil, 0, errors.Join(fmt.Errorf("a connection to %s", conn.LocalAddr()), conn.Close())
		}
		return conn, uint16(local.Port), nil
	case <-l.closed:
		return nil, 0, net.ErrClosed
	}
}

// Close ends the taking; connections that Accept has returned stay. It may be
// called more than once.
func (l *Listener) Close() error {
	var err error
	l.once.Do(func() {
		close(l.closed)
		err = l.steering.Close()
		l.closeSockets()
		l.tasks.Wait()
	})
	return err
}

func (l *Listener) closeSockets() {
	for _, tcp := range l.tcp {
		if tcp != nil {
			_ = tcp.Close()
		}
	}
}
