package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// Unpack writes a tar archive into a directory of a container that has not ended,
// which is made if it is missing. Files get the owners of the archive if owners is
// set, and those of the superuser otherwise.
func (s *Sandbox) Unpack(ctx context.Context, id, path string, owners bool, archive io.Reader) error {
	m, conn, err := s.dialFiles(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := m.whileAlive(ctx)
	defer cancel()
	return agentclient.Unpack(ctx, conn, streamwire.Request{Container: id, Path: path, Owners: owners}, archive)
}

// Pack writes a tar archive of a path in a container that has not ended, with what
// is below it unless it is to be the entry alone.
func (s *Sandbox) Pack(ctx context.Context, id, path string, entry bool, archive io.Writer) error {
	m, conn, err := s.dialFiles(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := m.whileAlive(ctx)
	defer cancel()
	return agentclient.Pack(ctx, conn, streamwire.Request{Container: id, Path: path, Entry: entry}, archive)
}

func (s *Sandbox) dialFiles(ctx context.Context, id string) (*machine, net.Conn, error) {
	_, m, err := s.findCreated(id, "")
	if err != nil {
		return nil, nil, err
	}
	conn, err := m.dialFiles(ctx)
	return m, conn, err
}

// dialFiles connects to the agent for an operation on files.
func (m *machine) dialFiles(ctx context.Context) (net.Conn, error) {
	if !m.files {
		return nil, fmt.Errorf("the agent in the guest has no access to the files of containers: %w", errdefs.ErrNotImplemented)
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Call.Std())
	defer cancel()
	conn, err := m.vm.Dial(ctx, streamwire.FilesPort)
	if err != nil {
		return nil, fmt.Errorf("connect to the guest's files: %w", err)
	}
	return conn, nil
}

// whileAlive is a context that ends with the VM too.
func (m *machine) whileAlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.ctx, func() { cancel(context.Cause(m.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
