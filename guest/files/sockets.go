package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/agentclient/streamwire/join"
)

// Sockets are the Unix sockets of containers that lead to the host.
type Sockets struct {
	dir string // a directory below it for each container

	mu   sync.Mutex
	open map[string]map[string]*net.UnixListener // by container and name
}

// NewSockets makes sockets below a directory, in one for each container.
func NewSockets(dir string) *Sockets {
	return &Sockets{dir: dir, open: map[string]map[string]*net.UnixListener{}}
}

var socketName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9]{1,32}$`) })

// Close closes the sockets of a container that is gone.
func (s *Sockets) Close(container string) {
	s.mu.Lock()
	sockets := s.open[container]
	delete(s.open, container)
	s.mu.Unlock()
	for _, one := range sockets {
		_ = one.Close()
	}
}

// serve gives a connection of the host to the next program that connects.
func (s *Sockets) serve(ctx context.Context, conn net.Conn, r streamwire.Request) error {
	socket, err := s.get(r)
	if err := answer(conn, err); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	program, err := socket.Accept()
	if err != nil {
		return nil // the container is gone
	}
	if err := streamwire.WriteAnswer(conn, nil); err != nil {
		return errors.Join(err, program.Close())
	}
	if err := join.Join(conn, program); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return nil
}

// get returns the socket of a request, and makes it the first time.
func (s *Sockets) get(r streamwire.Request) (*net.UnixListener, error) {
	if !socketName().MatchString(r.Path) {
		return nil, fmt.Errorf("name of a socket %.140q: %w", r.Path, errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if there := s.open[r.Container][r.Path]; there != nil {
		return there, nil
	}
	listener, err := s.listen(r)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", r.Path, err)
	}
	if s.open[r.Container] == nil {
		s.open[r.Container] = map[string]*net.UnixListener{}
	}
	s.open[r.Container][r.Path] = listener
	return listener, nil
}

// listen makes the socket. Its path can be longer than an address may be, so it
// is named by a descriptor of its directory.
func (s *Sockets) listen(r streamwire.Request) (*net.UnixListener, error) {
	if filepath.Base(r.Container) != r.Container || r.Container == "." || r.Container == ".." {
		return nil, fmt.Errorf("container %q: %w", r.Container, errdefs.ErrInvalidArgument)
	}
	path := filepath.Join(s.dir, r.Container)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name := filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), r.Path)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // that name is another file's by then
	err = errors.Join(os.Chown(name, int(r.User), int(r.Group)), os.Chmod(name, os.FileMode(r.Mode)&os.ModePerm))
	if err != nil {
		return nil, errors.Join(err, listener.Close(), os.Remove(filepath.Join(path, r.Path)))
	}
	return listener, nil
}
