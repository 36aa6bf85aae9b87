// Package task translates containerd's Task service, version 3, to a sandbox
// and the sandbox's events back.
//
// A Service owns the sandbox that it makes and nothing else. The ttrpc server
// calls its methods from any goroutine, several at a time; none of them holds a
// lock. Errors leave as gRPC status, with the class that the sandbox gave them.
package task

import (
	"context"
	"fmt"
	"os"
	"syscall"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/runtime/sandbox"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// Service is the Task service of one shim.
type Service struct {
	sandbox *sandbox.Sandbox
	// shutdown ends the shim; it must not wait for the call that calls it.
	shutdown func()
}

var _ taskapi.TTRPCTaskService = (*Service)(nil)

// New returns the service for a namespace. publish takes an event of
// containerd's API and must not wait; shutdown is called when containerd has
// asked for the end and no container is left.
func New(namespace string, logger *log.Entry, publish func(topic string, event any), shutdown func()) *Service {
	return &Service{
		sandbox:  sandbox.New(namespace, events{publish}, logger),
		shutdown: shutdown,
	}
}

// Register adds the service to a server, before it serves.
func (s *Service) Register(server *ttrpc.Server) {
	taskapi.RegisterTTRPCTaskService(server, s)
}

// Close ends the VM and all that runs in it.
func (s *Service) Close(ctx context.Context) error { return s.sandbox.Close(ctx) }

// Create boots the VM, if it is the first container, and makes the container.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	if r.Checkpoint != "" {
		return nil, toGRPC(fmt.Errorf("restore from checkpoint %s: %w", r.Checkpoint, errdefs.ErrNotImplemented))
	}
	config, err := configuration(r.Options)
	if err != nil {
		return nil, toGRPC(err)
	}
	if err := setLogLevel(config.Log.Level); err != nil {
		return nil, toGRPC(err)
	}
	req := &sandbox.CreateRequest{
		ID:      r.ID,
		Bundle:  r.Bundle,
		Streams: stdio.Paths{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Config:  config,
	}
	for _, m := range r.Rootfs {
		req.Rootfs = append(req.Rootfs, rootfs.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	pid, err := s.sandbox.Create(ctx, req)
	if err != nil {
		log.G(ctx).WithError(err).WithField("container", r.ID).Error("create")
		return nil, toGRPC(err)
	}
	return &taskapi.CreateTaskResponse{Pid: uint32(pid)}, nil
}

// Start lets the container's process run.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	if err := noExec(r.ExecID); err != nil {
		return nil, err
	}
	pid, err := s.sandbox.Start(ctx, r.ID)
	if err != nil {
		return nil, toGRPC(err)
	}
	return &taskapi.StartResponse{Pid: uint32(pid)}, nil
}

// State describes a container.
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	if err := noExec(r.ExecID); err != nil {
		return nil, err
	}
	info, err := s.sandbox.Info(r.ID)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := &taskapi.StateResponse{
		ID: info.ID, Bundle: info.Bundle, Pid: uint32(info.Pid), Status: taskStatus(info.State),
		Stdin: info.Streams.Stdin, Stdout: info.Streams.Stdout, Stderr: info.Streams.Stderr, Terminal: info.Streams.Terminal,
	}
	if info.State == sandbox.Stopped {
		resp.ExitStatus = uint32(info.Exit.Status)
		resp.ExitedAt = timestamppb.New(info.Exit.At)
	}
	return resp, nil
}

func taskStatus(s sandbox.State) task.Status {
	switch s {
	case sandbox.Creating, sandbox.Created:
		return task.Status_CREATED
	case sandbox.Running:
		return task.Status_RUNNING
	case sandbox.Stopped, sandbox.Deleted:
		return task.Status_STOPPED
	}
	return task.Status_UNKNOWN
}

// Wait waits until the container has stopped.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	if err := noExec(r.ExecID); err != nil {
		return nil, err
	}
	exit, err := s.sandbox.Wait(ctx, r.ID)
	if err != nil {
		return nil, toGRPC(err)
	}
	return &taskapi.WaitResponse{ExitStatus: uint32(exit.Status), ExitedAt: timestamppb.New(exit.At)}, nil
}

// Kill signals the container's process. SIGKILL reaches all of its processes,
// with All or without: its init is the PID 1 of a namespace.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	if err := noExec(r.ExecID); err != nil {
		return nil, err
	}
	if err := s.sandbox.Kill(ctx, r.ID, syscall.Signal(r.Signal)); err != nil {
		return nil, toGRPC(err)
	}
	return &emptypb.Empty{}, nil
}

// Delete removes a stopped container, and the VM with the last one.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	if err := noExec(r.ExecID); err != nil {
		return nil, err
	}
	info, err := s.sandbox.Delete(ctx, r.ID)
	if err != nil {
		return nil, toGRPC(err)
	}
	return &taskapi.DeleteResponse{
		Pid: uint32(info.Pid), ExitStatus: uint32(info.Exit.Status), ExitedAt: timestamppb.New(info.Exit.At),
	}, nil
}

// Pids returns QEMU's pid: the processes of the container have none on the
// host. It is not empty while the container is known, as containerd takes a
// shim without pids for a leaked one.
func (s *Service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	info, err := s.sandbox.Info(r.ID)
	if err != nil {
		return nil, toGRPC(err)
	}
	pid := info.Pid
	if pid == 0 {
		pid = os.Getpid() // the VM is about to start
	}
	return &taskapi.PidsResponse{Processes: []*task.ProcessInfo{{Pid: uint32(pid)}}}, nil
}

// Connect tells containerd after its restart whom it is talking to.
func (s *Service) Connect(_ context.Context, _ *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(s.sandbox.Pid()), Version: "v3"}, nil
}

// Shutdown ends the shim if no container is left; containerd asks after every
// delete.
func (s *Service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	if s.sandbox.Empty() {
		s.shutdown()
	}
	return &emptypb.Empty{}, nil
}

// CloseIO closes the container's standard input.
func (s *Service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	if err := noExec(r.ExecID); err != nil {
		return nil, err
	}
	if r.Stdin {
		if err := s.sandbox.CloseStdin(r.ID); err != nil {
			return nil, toGRPC(err)
		}
	}
	return &emptypb.Empty{}, nil
}
