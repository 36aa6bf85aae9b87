// Package server answers the agent protocol: it translates calls into what
// packages container and storage do, and their errors into statuses.
//
// It owns the ttrpc server and the state of the sandbox, nothing else. Every
// call runs in a goroutine of its own; a call that panics is an answer of class
// Internal and not the end of PID 1. It never dials.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/container"
	"github.com/erofsvm/erofsvm/guest/network"
)

// Version is the version of the agent that Health.Version tells; protocol is
// that of the wire document.
const (
	Version  = "0.1.0"
	protocol = "4.1"
)

// Config is what the server works with.
type Config struct {
	Containers *container.Manager
	Sandbox    *Sandbox
	Network    *network.Network
	Log        *slog.Logger
	// Ready is closed when storages can be mounted, because all modules are
	// loaded; calls that need it wait.
	Ready <-chan struct{}
}

// New returns a server that has the services of the protocol.
func New(c Config) (*ttrpc.Server, error) {
	s, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(c.intercept))
	if err != nil {
		return nil, fmt.Errorf("make the ttrpc server: %w", err)
	}
	pb.RegisterAgentServiceService(s, &agent{containers: c.Containers, sandbox: c.Sandbox, network: c.Network, machine: machine{"/sys"}, ready: c.Ready, log: c.Log})
	pb.RegisterHealthService(s, health{})
	pb.RegisterGuestServiceService(s, &guest{containers: c.Containers, root: "/"})
	return s, nil
}

// Serve answers calls on l until ctx ends or l fails, and closes every
// connection before it returns.
func Serve(ctx context.Context, s *ttrpc.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	err := s.Serve(ctx, l)
	_ = s.Close()
	if errors.Is(err, ttrpc.ErrServerClosed) {
		return nil
	}
	return err
}

// intercept turns errors into statuses, and panics into errors.
func (c Config) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (resp any, err error) {
	began := time.Now()
	defer func() {
		if p := recover(); p != nil {
			c.Log.Error("call panicked", "method", info.FullMethod, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			resp, err = nil, status.Errorf(codes.Internal, "%s: the agent failed: %v", info.FullMethod, p)
		}
	}()
	resp, err = method(ctx, unmarshal)
	switch {
	case err == nil:
		c.Log.Debug("call", "method", info.FullMethod, "took", time.Since(began))
	case !errors.Is(err, io.EOF):
		c.Log.Warn("call failed", "method", info.FullMethod, "took", time.Since(began), "error", err.Error())
	}
	return resp, toStatus(err)
}

// toStatus gives an error its class on the wire. The end of a stream is
// OutOfRange, which nothing else here is.
func toStatus(err error) error {
	if errors.Is(err, io.EOF) {
		return status.Error(codes.OutOfRange, "end of stream")
	}
	return errgrpc.ToGRPC(err)
}

type health struct{}

func (health) Check(context.Context, *pb.CheckRequest) (*pb.HealthCheckResponse, error) {
	return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_SERVING}, nil
}

func (health) Version(context.Context, *pb.CheckRequest) (*pb.VersionCheckResponse, error) {
	return &pb.VersionCheckResponse{GrpcVersion: protocol, AgentVersion: Version}, nil
}

// unsupported collects fields of a request that are set and mean nothing here.
type unsupported []string

func (u *unsupported) check(field string, set bool) {
	if set {
		*u = append(*u, field)
	}
}

func (u unsupported) err() error {
	if len(u) == 0 {
		return nil
	}
	return fmt.Errorf("fields this agent does not have are set: %v: %w", []string(u), errdefs.ErrNotImplemented)
}
