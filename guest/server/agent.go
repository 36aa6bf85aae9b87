package server

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/container"
	"github.com/erofsvm/erofsvm/guest/network"
)

// agent is the service of the protocol.
type agent struct {
	unimplemented
	containers *container.Manager
	sandbox    *Sandbox
	network    *network.Network
	machine    machine
	ready      <-chan struct{}
	log        *slog.Logger
}

var empty = &emptypb.Empty{}

// maxRead bounds the reply to one read, in bytes: what a pipe holds at most.
const maxRead = 64 << 10

// defaultCreate bounds a CreateContainer whose caller set no deadline.
const defaultCreate = time.Minute

func (a *agent) CreateContainer(ctx context.Context, r *pb.CreateContainerRequest) (*emptypb.Empty, error) {
	var u unsupported
	u.check("string_user", r.GetStringUser() != nil)
	u.check("shared_mounts", len(r.GetSharedMounts()) > 0)
	u.check("stdin_port", r.GetStdinPort() != 0)
	u.check("stdout_port", r.GetStdoutPort() != 0)
	u.check("stderr_port", r.GetStderrPort() != 0)
	if err := u.err(); err != nil {
		return nil, err
	}
	if id := r.GetExecId(); id != "" && id != r.GetContainerId() {
		return nil, fmt.Errorf("exec_id %.140q, want none or the container's id: %w", id, errdefs.ErrInvalidArgument)
	}
	a.ignoreAppArmor(r.GetOCI().GetProcess(), r.GetContainerId(), "")
	ctx, cancel := ahead(ctx, defaultCreate)
	defer cancel()
	select {
	case <-a.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the modules of the guest: %w", ctx.Err())
	}
	own, ofPod := ownAndShared(r.GetStorages())
	shared, err := a.sandbox.parseShared(ofPod)
	if err == nil {
		err = a.sandbox.mount(ctx, shared)
	}
	if err != nil {
		return nil, err
	}
	steps, err := a.containers.Create(ctx, r.GetContainerId(), own, r.GetDevices(), r.GetOCI(), r.GetSandboxPidns())
	if err != nil {
		return nil, err
	}
	a.log.Info("container created", "id", r.GetContainerId(),
		"disks_took", steps.Disks, "mounts_took", steps.Mounts, "process_took", steps.Process)
	return empty, nil
}

// ahead ends a little before the deadline of the caller, so that the caller
// still hears what was waited for instead of nothing.
func ahead(ctx context.Context, unset time.Duration) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithTimeout(ctx, time.Until(deadline)*9/10)
	}
	return context.WithTimeout(ctx, unset)
}

func (a *agent) StartContainer(_ context.Context, r *pb.StartContainerRequest) (*emptypb.Empty, error) {
	return empty, a.containers.Start(r.GetContainerId())
}

func (a *agent) ExecProcess(_ context.Context, r *pb.ExecProcessRequest) (*emptypb.Empty, error) {
	var u unsupported
	u.check("string_user", r.GetStringUser() != nil)
	u.check("stdin_port", r.GetStdinPort() != 0)
	u.check("stdout_port", r.GetStdoutPort() != 0)
	u.check("stderr_port", r.GetStderrPort() != 0)
	if err := u.err(); err != nil {
		return nil, err
	}
	a.ignoreAppArmor(r.GetProcess(), r.GetContainerId(), r.GetExecId())
	return empty, a.containers.Exec(r.GetContainerId(), r.GetExecId(), r.GetProcess())
}

func (a *agent) ignoreAppArmor(p *pb.Process, id, exec string) {
	if profile := p.GetApparmorProfile(); profile != "" {
		a.log.Warn("AppArmor is not in the guest, the profile is ignored", "id", id, "exec", exec, "profile", fmt.Sprintf("%.128s", profile))
	}
}

func (a *agent) SignalProcess(ctx context.Context, r *pb.SignalProcessRequest) (*emptypb.Empty, error) {
	if s := r.GetSignal(); s < 1 || s > 64 {
		return nil, fmt.Errorf("signal %d: %w", s, errdefs.ErrInvalidArgument)
	}
	sig := unix.Signal(r.GetSignal())
	if r.GetExecId() == "" { // as Kata's agent has it, and here alone
		return empty, a.containers.SignalAll(ctx, r.GetContainerId(), sig)
	}
	return empty, a.containers.Signal(r.GetContainerId(), execID(r), sig)
}

func (a *agent) WaitProcess(ctx context.Context, r *pb.WaitProcessRequest) (*pb.WaitProcessResponse, error) {
	code, err := a.containers.Wait(ctx, r.GetContainerId(), execID(r))
	if err != nil {
		return nil, err
	}
	return &pb.WaitProcessResponse{Status: int32(code)}, nil
}

func (a *agent) RemoveContainer(ctx context.Context, r *pb.RemoveContainerRequest) (*emptypb.Empty, error) {
	if seconds := r.GetTimeout(); seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	return empty, a.containers.Remove(ctx, r.GetContainerId())
}

func (a *agent) WriteStdin(ctx context.Context, r *pb.WriteStreamRequest) (*pb.WriteStreamResponse, error) {
	n, err := a.containers.WriteStdin(ctx, r.GetContainerId(), execID(r), r.GetData())
	if err != nil {
		return nil, err
	}
	return &pb.WriteStreamResponse{Len: uint32(n)}, nil
}

type readFunc func(ctx context.Context, id, exec string, buf []byte) (int, error)

func (a *agent) ReadStdout(ctx context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	return read(ctx, r, a.containers.ReadStdout)
}

func (a *agent) ReadStderr(ctx context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	return read(ctx, r, a.containers.ReadStderr)
}

func read(ctx context.Context, r *pb.ReadStreamRequest, do readFunc) (*pb.ReadStreamResponse, error) {
	if r.GetLen() == 0 {
		return nil, fmt.Errorf("a read of 0 bytes: %w", errdefs.ErrInvalidArgument)
	}
	buf := make([]byte, min(r.GetLen(), maxRead))
	n, err := do(ctx, r.GetContainerId(), execID(r), buf)
	if err != nil {
		return nil, err
	}
	return &pb.ReadStreamResponse{Data: buf[:n]}, nil
}

func (a *agent) CloseStdin(_ context.Context, r *pb.CloseStdinRequest) (*emptypb.Empty, error) {
	return empty, a.containers.CloseStdin(r.GetContainerId(), execID(r))
}

func (a *agent) TtyWinResize(_ context.Context, r *pb.TtyWinResizeRequest) (*emptypb.Empty, error) {
	rows, columns := r.GetRow(), r.GetColumn()
	if rows > 1<<16-1 || columns > 1<<16-1 {
		return nil, fmt.Errorf("terminal of %d by %d: %w", rows, columns, errdefs.ErrInvalidArgument)
	}
	return empty, a.containers.Resize(r.GetContainerId(), execID(r), uint16(rows), uint16(columns))
}

// execID is the exec that a request means. The container's own process goes by
// "" here; other hosts of the protocol also call it by the container's id.
func execID(r interface {
	GetContainerId() string
	GetExecId() string
}) string {
	if id := r.GetExecId(); id != r.GetContainerId() {
		return id
	}
	return ""
}
