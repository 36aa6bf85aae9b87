package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// Dial connects to what the fake agent has at a port.
func (v *fakeVM) Dial(_ context.Context, port uint32) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			return nil, err
		}
		_ = f.Close()
	}
	v.mu.Lock()
	v.conns = append(v.conns, ends[0])
	v.mu.Unlock()
	switch port {
	case agentPort:
		v.tasks.Go(func() { v.agent.serve(ends[1]) })
	case streamwire.Port:
		v.tasks.Go(func() { v.agent.serveStream(ends[1]) })
	case streamwire.FilesPort:
		v.tasks.Go(func() { v.agent.serveFiles(ends[1]) })
	case streamwire.PortsPort:
		v.tasks.Go(func() { v.agent.servePorts(ends[1]) })
	default:
		return nil, fmt.Errorf("nobody listens at port %d", port)
	}
	return ends[0], nil
}
