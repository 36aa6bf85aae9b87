package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

func (s *Sandbox) streamOptions(p *process, m *machine) stdio.Options {
	return stdio.Options{
		ID: p.c.id, Namespace: s.namespace, Deadline: m.cfg.Deadlines.Hook.Std(), Remote: s.remote,
		Warn: func(err error) { s.log.WithError(err).Warnf("%s", p) },
	}
}

// streams returns the guest's side of the streams of a process that the guest
// has: connections of their own, if the agent speaks that, or its calls. ctx
// bounds the opening alone.
func (m *machine) streams(ctx context.Context, p *process) (stdio.Guest, error) {
	if p.c.virtual != nil {
		return noStreams{}, nil
	}
	if !m.wire {
		return guestStreams{m.agent, p.ref()}, nil
	}
	g := &wireStreams{m: m, process: p.ref()}
	var both errgroup.Group
	both.Go(func() (err error) {
		g.stdout, err = g.open(ctx, streamwire.Stdout)
		return err
	})
	if !p.streams.Terminal { // which has one output
		both.Go(func() (err error) {
			g.stderr, err = g.open(ctx, streamwire.Stderr)
			return err
		})
	}
	if err := both.Wait(); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// guestStreams is a process of the guest as package stdio sees it, by calls of
// the agent.
type guestStreams struct {
	agent   *agentclient.Client
	process agentclient.Process
}

func (g guestStreams) ReadStdout(ctx context.Context, buf []byte) (int, error) {
	return g.agent.ReadStdout(ctx, g.process, buf)
}

func (g guestStreams) ReadStderr(ctx context.Context, buf []byte) (int, error) {
	return g.agent.ReadStderr(ctx, g.process, buf)
}

func (g guestStreams) WriteStdin(ctx context.Context, data []byte) (int, error) {
	n, err := g.agent.WriteStdin(ctx, g.process, data)
	return n, inputError(err)
}

func (g guestStreams) CloseStdin(ctx context.Context) error {
	return inputError(g.agent.CloseStdin(ctx, g.process))
}

// wireStreams is a process of the guest as package stdio sees it, by a
// connection for each stream. That of the input is made when there is some.
// Each stream is used by one goroutine; the context of the first call ends them
// all, since a connection knows no contexts.
type wireStreams struct {
	m              *machine
	process        agentclient.Process
	stdout, stderr *agentclient.Stream
	bind           sync.Once

	mu     sync.Mutex
	stdin  *agentclient.Stream
	closed bool
}

func (g *wireStreams) open(ctx context.Context, kind streamwire.Kind) (*agentclient.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, g.m.cfg.Deadlines.Call.Std())
	defer cancel()
	conn, err := g.m.vm.Dial(ctx, streamwire.Port)
	if err != nil {
		return nil, fmt.Errorf("connect to the guest's %s: %w", kind, err)
	}
	return agentclient.OpenStream(ctx, conn, g.process, kind)
}

func (g *wireStreams) bound(ctx context.Context) {
	g.bind.Do(func() { context.AfterFunc(ctx, g.close) })
}

func (g *wireStreams) close() {
	g.mu.Lock()
	g.closed = true
	stdin := g.stdin
	g.mu.Unlock()
	for _, s := range []*agentclient.Stream{stdin, g.stdout, g.stderr} {
		if s != nil {
			s.Close()
		}
	}
}

func (g *wireStreams) ReadStdout(ctx context.Context, buf []byte) (int, error) {
	return g.read(ctx, g.stdout, buf)
}

func (g *wireStreams) ReadStderr(ctx context.Context, buf []byte) (int, error) {
	return g.read(ctx, g.stderr, buf)
}

func (g *wireStreams) read(ctx context.Context, s *agentclient.Stream, buf []byte) (int, error) {
	g.bound(ctx)
	n, err := s.Read(buf)
	if errors.Is(err, io.EOF) {
		s.Close() // the guest waits for that
	}
	return n, err
}

func (g *wireStreams) WriteStdin(ctx context.Context, data []byte) (int, error) {
	s, err := g.input(ctx)
	if err != nil {
		return 0, err
	}
	n, err := s.Write(data)
	return n, inputError(err)
}

// CloseStdin ends the input. One that nothing was written to has no connection
// and is ended by a call.
func (g *wireStreams) CloseStdin(ctx context.Context) error {
	g.bound(ctx)
	g.mu.Lock()
	s := g.stdin
	g.mu.Unlock()
	if s == nil {
		return inputError(g.m.agent.CloseStdin(ctx, g.process))
	}
	return inputError(s.End())
}

// input returns the connection of the input, and makes it the first time.
func (g *wireStreams) input(ctx context.Context) (*agentclient.Stream, error) {
	g.bound(ctx)
	g.mu.Lock()
	s := g.stdin
	g.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := g.open(ctx, streamwire.Stdin)
	if err != nil {
		return nil, inputError(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stdin = s
	if g.closed {
		s.Close()
	}
	return s, nil
}

// inputError tells a process that has closed its input, or is gone, from a
// fault.
func inputError(err error) error {
	if errors.Is(err, agentclient.ErrInputClosed) || errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("%w: %w", stdio.ErrNoReader, err)
	}
	return err
}
