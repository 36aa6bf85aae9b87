package sandbox

import (
	"context"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// runner runs the process of a container: the agent, or a virtual.
type runner interface {
	StartContainer(ctx context.Context, id string) error
	SignalProcess(ctx context.Context, p agentclient.Process, sig syscall.Signal) error
	SignalAll(ctx context.Context, container string, sig syscall.Signal) error
	WaitProcess(ctx context.Context, p agentclient.Process) (status int, err error)
	PauseContainer(ctx context.Context, id string) error
	ResumeContainer(ctx context.Context, id string) error
	StatsContainer(ctx context.Context, id string) (*pb.StatsContainerResponse, error)
	TtyWinResize(ctx context.Context, p agentclient.Process, rows, columns uint16) error
}

// runner returns who runs the container's process; m is ready.
func (c *container) runner(m *machine) runner {
	if c.virtual != nil {
		return c.virtual
	}
	return m.agent
}

// virtual answers for the process of a pause container, which has nothing to do
// but to be there, so that none has to run in the guest: no memory, no disks. It
// ends as the program pause does that Kubernetes has (build/pause/linux/pause.c):
// SIGTERM and SIGINT are an orderly end, SIGKILL is none, and the first process
// of a pid namespace hears no other signal.
type virtual struct {
	stats func(ctx context.Context) (*pb.StatsContainerResponse, error)

	once   sync.Once
	ended  chan struct{}
	status int // final once ended is closed
}

func newVirtual(stats func(context.Context) (*pb.StatsContainerResponse, error)) *virtual {
	return &virtual{stats: stats, ended: make(chan struct{})}
}

func (v *virtual) end(status int) {
	v.once.Do(func() {
		v.status = status
		close(v.ended)
	})
}

func (v *virtual) SignalProcess(_ context.Context, p agentclient.Process, sig syscall.Signal) error {
	select {
	case <-v.ended:
		return fmt.Errorf("the process of container %s has ended: %w", p.Container, errdefs.ErrNotFound)
	default:
	}
	switch sig {
	case syscall.SIGKILL:
		v.end(statusKilled)
	case syscall.SIGTERM, syscall.SIGINT:
		v.end(0)
	}
	return nil
}

// SignalAll is SignalProcess: there is one process.
func (v *virtual) SignalAll(ctx context.Context, container string, sig syscall.Signal) error {
	return v.SignalProcess(ctx, agentclient.Process{Container: container}, sig)
}

func (v *virtual) WaitProcess(ctx context.Context, _ agentclient.Process) (int, error) {
	select {
	case <-v.ended:
		return v.status, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// StatsContainer returns what the whole pod has used.
func (v *virtual) StatsContainer(ctx context.Context, _ string) (*pb.StatsContainerResponse, error) {
	return v.stats(ctx)
}

func (*virtual) StartContainer(context.Context, string) error  { return nil }
func (*virtual) PauseContainer(context.Context, string) error  { return nil }
func (*virtual) ResumeContainer(context.Context, string) error { return nil }

func (*virtual) TtyWinResize(context.Context, agentclient.Process, uint16, uint16) error { return nil }

// noStreams are those of a process that neither reads nor writes.
type noStreams struct{}

func (noStreams) ReadStdout(context.Context, []byte) (int, error) { return 0, io.EOF }
func (noStreams) ReadStderr(context.Context, []byte) (int, error) { return 0, io.EOF }
func (noStreams) CloseStdin(context.Context) error                { return nil }

func (noStreams) WriteStdin(context.Context, []byte) (int, error) { return 0, stdio.ErrNoReader }
