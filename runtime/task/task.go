// Package task translates containerd's Task service, versions 2 and 3, to a
// sandbox and the sandbox's events back, and has the shim's other services beside
// it.
//
// A Service owns the sandbox that it makes and the streams that clients open to
// the shim, and nothing else. The ttrpc server calls its methods from any
// goroutine, several at a time; none of them holds a lock. Errors leave as gRPC
// status, with the class that the sandbox gave them.
package task

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
	"github.com/erofsvm/erofsvm/runtime/hostgroup"
	"github.com/erofsvm/erofsvm/runtime/metrics"
	"github.com/erofsvm/erofsvm/runtime/options"
	"github.com/erofsvm/erofsvm/runtime/rpcstatus"
	"github.com/erofsvm/erofsvm/runtime/sandbox"
	"github.com/erofsvm/erofsvm/runtime/sandboxapi"
	"github.com/erofsvm/erofsvm/runtime/stdio"
	"github.com/erofsvm/erofsvm/runtime/streaming"
	"github.com/erofsvm/erofsvm/runtime/transfer"
)

// Service is the Task service of one shim.
type Service struct {
	sandbox *sandbox.Sandbox
	streams *streaming.Service
	log     *log.Entry
	options *anypb.Any // of the shim's start; nil if there were none
	// shutdown ends the shim; it must not wait for the call that calls it.
	shutdown func()
}

var _ taskapi.TTRPCTaskService = (*Service)(nil)

// New returns the service for a namespace. started are the runtime options that
// came with the shim's start; publish takes an event of containerd's API and must
// not wait; shutdown is called when containerd has asked for the end and neither
// a container nor a pod is left.
func New(namespace string, logger *log.Entry, started *anypb.Any, publish func(topic string, event any), shutdown func()) *Service {
	streams := streaming.New()
	return &Service{
		sandbox:  sandbox.New(namespace, events{publish}, clientStreams{streams}, logger),
		streams:  streams,
		log:      logger,
		options:  started,
		shutdown: shutdown,
	}
}

// Register adds the services to a server, before it serves.
func (s *Service) Register(server *ttrpc.Server) {
	taskapi.RegisterTTRPCTaskService(server, s)
	registerV2(server, s)
	s.streams.Register(server)
	transfer.New(s.sandbox, s.transferStream).Register(server)
	sandboxapi.New(s.sandbox, s.options, s.shutdown).Register(server)
}

// transferStream is a stream that a client has opened, as package transfer sees it.
func (s *Service) transferStream(id string) (transfer.Stream, error) {
	stream, err := s.streams.Claim(id)
	if err != nil {
		return nil, err
	}
	return stream, nil
}

// clientStreams are the streams that clients open to the shim, as package stdio
// sees them.
type clientStreams struct{ service *streaming.Service }

func (c clientStreams) Claim(id string) (stdio.RemoteStream, error) {
	stream, err := c.service.Claim(id)
	if err != nil {
		return nil, err
	}
	return stream, nil
}

// Close ends the VM and all that runs in it.
func (s *Service) Close(ctx context.Context) error { return s.sandbox.Close(ctx) }

// begun is the context of an operation that is finished although its caller may
// go away: a connection that breaks is a containerd that was restarted, and the
// next one is to find what this one has asked for. Every step has a deadline of
// its own, and Delete gives up a creation.
func begun(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

// hungUp asks whether the connection is broken on which an operation was asked
// for: it cancels the context of each call. A caller whose deadline has passed is
// still there.
func hungUp(ctx context.Context) func() bool {
	return func() bool { return errors.Is(ctx.Err(), context.Canceled) }
}

// Launched says when the shim's process began and when it began to serve.
func (s *Service) Launched(began, serving time.Time) { s.sandbox.Launched(began, serving) }

// caller is the span of containerd that a call is a part of, if that traces.
func caller(ctx context.Context) string {
	parent, _ := ttrpc.GetMetadataValue(ctx, "traceparent")
	return parent
}

// Create boots the VM, if it is the first container, and makes the container.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	arrived := time.Now()
	if r.Checkpoint != "" {
		return nil, rpcstatus.Of(fmt.Errorf("restore from checkpoint %s: %w", r.Checkpoint, errdefs.ErrNotImplemented))
	}
	config, err := options.Config(r.Options)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	if err := options.SetLogLevel(config.Log.Level); err != nil {
		return nil, rpcstatus.Of(err)
	}
	// Before the VM is started, which is in the shim's cgroup.
	group, err := options.ShimGroup(r.Options)
	if err == nil && group != "" {
		// The client has chosen, whatever the OCI spec says.
		config.Host.Cgroup = configs.CgroupInherit
		err = hostgroup.Join(os.Getpid(), group)
	}
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	req := &sandbox.CreateRequest{
		ID:      r.ID,
		Bundle:  r.Bundle,
		Streams: stdio.Paths{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Config:  config,
		Arrived: arrived,
		Caller:  caller(ctx),
		Unheard: hungUp(ctx),
	}
	for _, m := range r.Rootfs {
		req.Rootfs = append(req.Rootfs, rootfs.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	pid, err := s.sandbox.Create(begun(ctx), req)
	if err != nil {
		log.G(ctx).WithError(err).WithField("container", r.ID).Error("create")
		return nil, rpcstatus.Of(err)
	}
	return &taskapi.CreateTaskResponse{Pid: uint32(pid)}, nil
}

// Start lets the container's process run, or starts an exec.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	pid, err := s.sandbox.Start(begun(ctx), r.ID, r.ExecID)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &taskapi.StartResponse{Pid: uint32(pid)}, nil
}

// State describes a process.
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	info, err := s.sandbox.Info(r.ID, r.ExecID)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	resp := &taskapi.StateResponse{
		ID: info.ID, Bundle: info.Bundle, Pid: uint32(info.Pid), Status: taskStatus(info.State), ExecID: info.Exec,
		Stdin: info.Streams.Stdin, Stdout: info.Streams.Stdout, Stderr: info.Streams.Stderr, Terminal: info.Streams.Terminal,
	}
	if info.Exec != "" {
		resp.ID = info.Exec // as runc's shim has it
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
	case sandbox.Paused:
		return task.Status_PAUSED
	case sandbox.Stopped, sandbox.Deleted:
		return task.Status_STOPPED
	}
	return task.Status_UNKNOWN
}

// Wait waits until a process has stopped.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	exit, err := s.sandbox.Wait(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &taskapi.WaitResponse{ExitStatus: uint32(exit.Status), ExitedAt: timestamppb.New(exit.At)}, nil
}

// Kill signals a process. SIGKILL to a container reaches all of its processes,
// with All or without.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	return done(s.sandbox.Kill(begun(ctx), r.ID, r.ExecID, syscall.Signal(r.Signal), r.All))
}

// Delete removes a stopped container, and the VM with the last one, or an exec.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	info, err := s.sandbox.DeleteFor(begun(ctx), r.ID, r.ExecID, hungUp(ctx))
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &taskapi.DeleteResponse{
		Pid: uint32(info.Pid), ExitStatus: uint32(info.Exit.Status), ExitedAt: timestamppb.New(info.Exit.At),
	}, nil
}

// Pids returns QEMU's pid for the container and for each exec that runs: they
// have none of their own on the host. It is not empty while the container is
// known, as containerd takes a shim without pids for a leaked one.
func (s *Service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	info, err := s.sandbox.Info(r.ID, "")
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	execs, err := s.sandbox.Execs(r.ID)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	pid := uint32(info.Pid)
	if pid == 0 {
		pid = uint32(os.Getpid()) // the VM is about to start
	}
	resp := &taskapi.PidsResponse{Processes: []*task.ProcessInfo{{Pid: pid}}}
	for _, exec := range execs {
		details, err := typeurl.MarshalAnyToProto(&runcoptions.ProcessDetails{ExecID: exec})
		if err != nil {
			return nil, rpcstatus.Of(fmt.Errorf("details of exec %s: %w", exec, err))
		}
		resp.Processes = append(resp.Processes, &task.ProcessInfo{Pid: pid, Info: details})
	}
	return resp, nil
}

// Exec adds a process to a container.
func (s *Service) Exec(_ context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	req := &sandbox.ExecRequest{
		ID: r.ID, Exec: r.ExecID,
		Streams: stdio.Paths{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	}
	var spec specs.Process
	if err := fromAny(r.Spec, "Process", &spec); err != nil {
		return nil, rpcstatus.Of(err)
	}
	process, dropped, err := guestspec.Process(&spec)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	for _, d := range dropped {
		s.log.WithField("container", r.ID).WithField("exec", r.ExecID).Warnf("not for the guest: %s", d)
	}
	process.Terminal = r.Terminal // as runc's shim has it
	req.Process = process
	return done(s.sandbox.Exec(req))
}

// ResizePty sets the size of a terminal.
func (s *Service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	if r.Height > math.MaxUint16 || r.Width > math.MaxUint16 {
		return nil, rpcstatus.Of(fmt.Errorf("terminal of %d by %d: %w", r.Height, r.Width, errdefs.ErrInvalidArgument))
	}
	return done(s.sandbox.Resize(ctx, r.ID, r.ExecID, uint16(r.Height), uint16(r.Width)))
}

// CloseIO closes the standard input of a process.
func (s *Service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	if !r.Stdin {
		return &emptypb.Empty{}, nil
	}
	return done(s.sandbox.CloseStdin(r.ID, r.ExecID))
}

// Pause freezes a container.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return done(s.sandbox.Pause(begun(ctx), r.ID))
}

// Resume lets a paused container run again.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return done(s.sandbox.Resume(begun(ctx), r.ID))
}

// Update changes the limits of a container. Annotations are for other runtimes.
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	if r.Resources == nil {
		return &emptypb.Empty{}, nil
	}
	var limits specs.LinuxResources
	if err := fromAny(r.Resources, "LinuxResources", &limits); err != nil {
		return nil, rpcstatus.Of(err)
	}
	resources, dropped := guestspec.Resources(&limits)
	for _, d := range dropped {
		s.log.WithField("container", r.ID).Warnf("not for the guest: %s", d)
	}
	return done(s.sandbox.Update(begun(ctx), r.ID, resources))
}

// Stats returns what a container has used, as io.containerd.cgroups.v2.Metrics.
func (s *Service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	stats, err := s.sandbox.Stats(ctx, r.ID)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	packed, err := typeurl.MarshalAnyToProto(metrics.Of(stats))
	if err != nil {
		return nil, rpcstatus.Of(fmt.Errorf("statistics of container %s: %w", r.ID, err))
	}
	return &taskapi.StatsResponse{Stats: packed}, nil
}

// Checkpoint is refused: what runs in the guest cannot be written down.
func (s *Service) Checkpoint(_ context.Context, r *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, rpcstatus.Of(fmt.Errorf("checkpoint of container %s: its processes and their memory are the guest's, and CRIU on the host cannot reach them: %w",
		r.ID, errdefs.ErrNotImplemented))
}

// Connect tells containerd after its restart whom it is talking to.
func (s *Service) Connect(_ context.Context, _ *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(s.sandbox.Pid()), Version: "v3"}, nil
}

// Shutdown ends the shim if neither a container nor a pod is left; containerd asks
// after every delete. With Now, which containerd does not set but the shim's own `delete`, it
// ends whatever runs.
func (s *Service) Shutdown(_ context.Context, r *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	if r.Now || s.sandbox.Empty() {
		s.shutdown()
	}
	return &emptypb.Empty{}, nil
}

func done(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &emptypb.Empty{}, nil
}
