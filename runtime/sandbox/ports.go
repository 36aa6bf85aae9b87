package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/network/loopback"
)

// maxPortConnections bounds the connections to ports of one guest at a time; who
// makes more of them waits.
const maxPortConnections = 256

// takePorts leads connections to the loopback of the pod's network namespace,
// which is where containerd connects to for a port-forward, to that of the guest,
// until the VM ends. A pod that cannot have it is a pod all the same. It is not for
// the host's namespace, nor for containers without a pod, to which nobody forwards.
func (m *machine) takePorts() {
	if !m.pod || m.net.ns == nil {
		return
	}
	if !m.ports {
		m.log.Info("no port-forward: the agent in the guest does not know of it")
		return
	}
	l, err := loopback.Listen(m.net.ns)
	if err != nil {
		m.log.WithError(err).Warn("no port-forward to this pod")
		return
	}
	m.servePorts(l)
}

// portListener is a loopback.Listener.
type portListener interface {
	Accept() (conn net.Conn, port uint16, err error)
	Close() error
}

// servePorts owns the listener.
func (m *machine) servePorts(l portListener) {
	defer l.Close()
	stop := context.AfterFunc(m.ctx, func() { _ = l.Close() })
	defer stop()
	open := make(chan struct{}, maxPortConnections)
	for {
		select {
		case open <- struct{}{}:
		case <-m.ctx.Done():
			return
		}
		local, port, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			err = m.spawn(func() {
				defer func() { <-open }()
				if err := m.joinPort(local, port); err != nil && m.ctx.Err() == nil {
					m.log.WithError(err).Debugf("connection to port %d of the pod", port)
				}
			})
			if err == nil {
				continue
			}
			_ = local.Close()
		}
		<-open
		m.log.WithError(err).Debug("connection to the pod's loopback")
	}
}

// joinPort connects the guest's port with a connection that was made to the
// pod's, until both ends have ended.
func (m *machine) joinPort(local net.Conn, port uint16) error {
	defer local.Close()
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.Deadlines.Call.Std())
	defer cancel()
	conn, err := m.vm.Dial(ctx, streamwire.PortsPort)
	if err != nil {
		return fmt.Errorf("connect to the guest's ports: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(m.ctx, func() {
		_ = conn.Close()
		_ = local.Close()
	})
	defer stop()
	if err := agentclient.ConnectPort(ctx, conn, port); err != nil {
		return err
	}
	return agentclient.JoinPort(conn, local)
}
