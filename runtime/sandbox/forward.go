package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
)

// maxForwarded bounds the connections that a container has to one socket of the
// host at a time: who is in it may be hostile.
const maxForwarded = 128

// forward makes the sockets of a container in the guest, each of which leads to
// one of the host until the container, or the VM, is gone.
func (m *machine) forward(ctx context.Context, c *container, sockets []guestspec.Socket) error {
	for _, socket := range sockets {
		f := &forwarded{m: m, container: c.id, socket: socket, open: make(chan struct{}, maxForwarded)}
		first, err := f.listen(ctx)
		if err == nil {
			err = m.spawn(func() { f.serve(first) })
			if err != nil {
				first.Close()
			}
		}
		if err != nil {
			return fmt.Errorf("mount %s, which is the host's socket %s: %w", socket.Destination, socket.Source, err)
		}
	}
	return nil
}

// forwarded is one socket of the guest.
type forwarded struct {
	m         *machine
	container string
	socket    guestspec.Socket
	open      chan struct{} // has a token for each connection
}

// listen has the guest listen, or wait for one more. The socket gets the owners
// and the mode of the host's.
func (f *forwarded) listen(ctx context.Context) (*agentclient.Forward, error) {
	info, err := os.Stat(f.socket.Source)
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("it is no socket: %w", errdefs.ErrInvalidArgument)
	}
	conn, err := f.m.dialFiles(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.m.cfg.Deadlines.Call.Std())
	defer cancel()
	return agentclient.OpenForward(ctx, conn, streamwire.Request{
		Container: f.container, Path: f.socket.Name,
		Mode: uint32(info.Mode().Perm()), User: st.Uid, Group: st.Gid,
	})
}

// serve gives each program of the guest that connects a connection of its own to
// the host's socket.
func (f *forwarded) serve(waiting *agentclient.Forward) {
	log := f.m.log.WithField("container", f.container).WithField("socket", f.socket.Source)
	for {
		stop := context.AfterFunc(f.m.ctx, waiting.Close)
		err := waiting.Wait()
		stop()
		if err != nil { // the container is gone, or the VM
			waiting.Close()
			return
		}
		select {
		case f.open <- struct{}{}:
		case <-f.m.ctx.Done():
			waiting.Close()
			return
		}
		taken := waiting
		if err := f.m.spawn(func() { f.join(taken) }); err != nil {
			taken.Close()
			return
		}
		if waiting, err = f.listen(f.m.ctx); err != nil {
			if f.m.ctx.Err() == nil {
				log.WithError(err).Warn("nobody can connect to the socket any more")
			}
			return
		}
	}
}

func (f *forwarded) join(taken *agentclient.Forward) {
	defer func() { <-f.open }()
	defer taken.Close()
	log := f.m.log.WithField("container", f.container).WithField("socket", f.socket.Source)
	ctx, cancel := context.WithTimeout(f.m.ctx, f.m.cfg.Deadlines.Call.Std())
	defer cancel()
	local, err := new(net.Dialer).DialContext(ctx, "unix", f.socket.Source)
	if err != nil {
		log.WithError(err).Warn("connect a program of the guest")
		return
	}
	stop := context.AfterFunc(f.m.ctx, func() {
		taken.Close()
		_ = local.Close()
	})
	defer stop()
	if err := taken.Join(local); err != nil && f.m.ctx.Err() == nil {
		log.WithError(err).Debug("connection of a program of the guest")
	}
}
