package sandbox

import (
	"context"
	"fmt"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/hypervisor"
)

func (a *fakeAgent) ReseedRandomDev(ctx context.Context, _ *pb.ReseedRandomDevRequest) (*emptypb.Empty, error) {
	return ok(a.called(ctx, "ReseedRandomDev"))
}

func (a *fakeAgent) SetGuestDateTime(ctx context.Context, _ *pb.SetGuestDateTimeRequest) (*emptypb.Empty, error) {
	return ok(a.called(ctx, "SetGuestDateTime"))
}

// asked are requests to create; the fakeAgent's mutex guards them.
type asked struct {
	sandbox    *pb.CreateSandboxRequest
	containers map[string]*pb.CreateContainerRequest
}

func (a *fakeAgent) container(id string) *pb.CreateContainerRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.containers[id]
}

func (v *fakeVM) AttachNIC(_ context.Context, n hypervisor.NIC) (hypervisor.Attachment, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.nics = append(v.nics, fmt.Sprintf("%s mtu %d, %d queues", n.MAC, n.MTU, len(n.Queues)))
	return hypervisor.Attachment{PCIPath: "08/01"}, nil
}

func (v *fakeVM) DetachNIC(context.Context, string) error { return nil }

func (a *fakeAgent) UpdateInterface(ctx context.Context, r *pb.UpdateInterfaceRequest) (*pb.Interface, error) {
	i := r.GetInterface()
	var addresses []string
	for _, ip := range i.GetIPAddresses() {
		addresses = append(addresses, ip.GetAddress()+"/"+ip.GetMask())
	}
	return i, a.called(ctx, "UpdateInterface", i.GetName(), i.GetHwAddr(), "at", i.GetDevicePath(), i.GetMtu(), addresses)
}

func (a *fakeAgent) UpdateRoutes(ctx context.Context, r *pb.UpdateRoutesRequest) (*pb.Routes, error) {
	var routes []string
	for _, r := range r.GetRoutes().GetRoutes() {
		routes = append(routes, r.GetDest()+" via "+r.GetGateway()+" dev "+r.GetDevice())
	}
	return r.GetRoutes(), a.called(ctx, "UpdateRoutes", routes)
}

func (a *fakeAgent) AddARPNeighbors(ctx context.Context, r *pb.AddARPNeighborsRequest) (*emptypb.Empty, error) {
	var neighbours []string
	for _, n := range r.GetNeighbors().GetARPNeighbors() {
		neighbours = append(neighbours, n.GetToIPAddress().GetAddress()+" "+n.GetLladdr()+" dev "+n.GetDevice())
	}
	return ok(a.called(ctx, "AddARPNeighbors", neighbours))
}

func (a *fakeAgent) CreateSandbox(ctx context.Context, r *pb.CreateSandboxRequest) (*emptypb.Empty, error) {
	a.mu.Lock()
	a.sandbox = r
	a.mu.Unlock()
	return ok(a.called(ctx, "CreateSandbox"))
}

func (a *fakeAgent) GetGuestDetails(ctx context.Context, _ *pb.GuestDetailsRequest) (*pb.GuestDetailsResponse, error) {
	if err := a.called(ctx, "GetGuestDetails"); err != nil {
		return nil, err
	}
	details := &pb.AgentDetails{ExtraFeatures: []string{"something.else/1"}}
	if a.wire {
		details.ExtraFeatures = append(details.ExtraFeatures, streamwire.Feature)
	}
	if !a.noFiles {
		details.ExtraFeatures = append(details.ExtraFeatures, streamwire.FilesFeature)
	}
	details.ExtraFeatures = append(details.ExtraFeatures, streamwire.PortsFeature)
	if !a.noCopies {
		details.ExtraFeatures = append(details.ExtraFeatures, streamwire.CopiesFeature)
	}
	return &pb.GuestDetailsResponse{AgentDetails: details, MemBlockSizeBytes: a.block}, nil
}

func (a *fakeAgent) OnlineCPUMem(ctx context.Context, r *pb.OnlineCPUMemRequest) (*emptypb.Empty, error) {
	what := "processors"
	if !r.GetCpuOnly() {
		what = "all"
	}
	return ok(a.called(ctx, "OnlineCPUMem", r.GetNbCpus(), what))
}

func (a *fakeAgent) CreateContainer(ctx context.Context, r *pb.CreateContainerRequest) (*emptypb.Empty, error) {
	if err := a.called(ctx, "CreateContainer", r.GetContainerId()); err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.created = append(a.created, r)
	a.mu.Unlock()
	a.add(agentclient.Process{Container: r.GetContainerId()})
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers == nil {
		a.containers = map[string]*pb.CreateContainerRequest{}
	}
	a.containers[r.GetContainerId()] = r
	return &emptypb.Empty{}, nil
}

func (a *fakeAgent) StartContainer(ctx context.Context, r *pb.StartContainerRequest) (*emptypb.Empty, error) {
	return ok(a.called(ctx, "StartContainer", r.GetContainerId()))
}

// ExecProcess makes the process before its answer can be held, as a guest does.
func (a *fakeAgent) ExecProcess(ctx context.Context, r *pb.ExecProcessRequest) (*emptypb.Empty, error) {
	a.mu.Lock()
	a.execs = append(a.execs, r)
	failure := a.fail["ExecProcess"]
	a.mu.Unlock()
	if failure == nil {
		a.add(agentclient.Process{Container: r.GetContainerId(), Exec: r.GetExecId()})
	}
	return ok(a.called(ctx, "ExecProcess", r.GetExecId()))
}

func (a *fakeAgent) SignalProcess(ctx context.Context, r *pb.SignalProcessRequest) (*emptypb.Empty, error) {
	if err := a.called(ctx, "SignalProcess", r.GetContainerId()+"/"+r.GetExecId(), r.GetSignal()); err != nil {
		return nil, err
	}
	p, err := a.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	default:
	}
	if r.GetSignal() == uint32(syscall.SIGKILL) {
		p.exit(statusKilled)
	}
	return &emptypb.Empty{}, nil
}

func (a *fakeAgent) WaitProcess(ctx context.Context, r *pb.WaitProcessRequest) (*pb.WaitProcessResponse, error) {
	p, err := a.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
		return &pb.WaitProcessResponse{Status: int32(p.status)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *fakeAgent) RemoveContainer(ctx context.Context, r *pb.RemoveContainerRequest) (*emptypb.Empty, error) {
	return ok(a.called(ctx, "RemoveContainer", r.GetContainerId()))
}

func (a *fakeAgent) read(ctx context.Context, from chan []byte) (*pb.ReadStreamResponse, error) {
	select {
	case data, ok := <-from:
		if !ok {
			return nil, status.Error(codes.OutOfRange, "the end")
		}
		return &pb.ReadStreamResponse{Data: data}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *fakeAgent) ReadStdout(ctx context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	p, err := a.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	return a.read(ctx, p.stdout)
}

func (a *fakeAgent) ReadStderr(ctx context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	p, err := a.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	return a.read(ctx, p.stderr)
}

func (a *fakeAgent) WriteStdin(_ context.Context, r *pb.WriteStreamRequest) (*pb.WriteStreamResponse, error) {
	p, err := a.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	p.stdin <- slices.Clone(r.GetData())
	return &pb.WriteStreamResponse{Len: uint32(len(r.GetData()))}, nil
}

func (a *fakeAgent) CloseStdin(ctx context.Context, r *pb.CloseStdinRequest) (*emptypb.Empty, error) {
	p, err := a.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	close(p.stdin)
	return ok(a.called(ctx, "CloseStdin", r.GetContainerId()+"/"+r.GetExecId()))
}

func (a *fakeAgent) TtyWinResize(ctx context.Context, r *pb.TtyWinResizeRequest) (*emptypb.Empty, error) {
	return ok(a.called(ctx, "TtyWinResize", r.GetExecId(), r.GetRow(), r.GetColumn()))
}

func (a *fakeAgent) PauseContainer(ctx context.Context, r *pb.PauseContainerRequest) (*emptypb.Empty, error) {
	return ok(a.called(ctx, "PauseContainer", r.GetContainerId()))
}

func (a *fakeAgent) ResumeContainer(ctx context.Context, r *pb.ResumeContainerRequest) (*emptypb.Empty, error) {
	return ok(a.called(ctx, "ResumeContainer", r.GetContainerId()))
}

func (a *fakeAgent) UpdateContainer(ctx context.Context, r *pb.UpdateContainerRequest) (*emptypb.Empty, error) {
	a.mu.Lock()
	a.updated = r.GetResources()
	a.mu.Unlock()
	return ok(a.called(ctx, "UpdateContainer", r.GetContainerId()))
}

func (a *fakeAgent) StatsContainer(ctx context.Context, r *pb.StatsContainerRequest) (*pb.StatsContainerResponse, error) {
	if err := a.called(ctx, "StatsContainer", r.GetContainerId()); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	numbers := map[string]uint64{}
	if a.counts {
		numbers[oomKey] = a.kills
	}
	return &pb.StatsContainerResponse{CgroupStats: &pb.CgroupStats{
		PidsStats: &pb.PidsStats{Current: 3}, MemoryStats: &pb.MemoryStats{Stats: numbers},
	}}, nil
}

func (a *fakeAgent) GetOOMEvent(ctx context.Context, _ *pb.GetOOMEventRequest) (*pb.OOMEvent, error) {
	if err := a.called(ctx, "GetOOMEvent"); err != nil {
		return nil, err
	}
	select {
	case id := <-a.ooms:
		return &pb.OOMEvent{ContainerId: id}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *fakeAgent) CopyFile(ctx context.Context, r *pb.CopyFileRequest) (*emptypb.Empty, error) {
	defer a.tell()
	if err := a.called(ctx, "CopyFile", r.GetPath()); err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.copied = append(a.copied, r)
	a.steps = append(a.steps, step{copied: r})
	a.mu.Unlock()
	return &emptypb.Empty{}, nil
}

func (v *fakeVM) Limits() (vcpus, memoryMiB int) { return v.limits.VCPUs, v.limits.MemoryMiB }

// AddCPUs is recorded among the agent's calls, and fails as they do.
func (v *fakeVM) AddCPUs(ctx context.Context, total int) (int, error) {
	if err := v.agent.called(ctx, "AddCPUs", total); err != nil {
		return total - 1, err
	}
	return total, nil
}

func (v *fakeVM) AddMemory(ctx context.Context, totalMiB int) (int, error) {
	return totalMiB, v.agent.called(ctx, "AddMemory", totalMiB)
}
