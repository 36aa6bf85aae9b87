// Package sandboxapi translates containerd's Sandbox service, version 1, to a
// sandbox: pods that the shim holds itself, without a pause container
// (sandboxer = "shim" in containerd's CRI plugin).
//
// A Service owns nothing but files of the pod in the bundle that containerd made
// for it. The ttrpc server calls its methods from any goroutine, several at a
// time; none of them holds a lock. Errors leave as gRPC status, with the class
// that the sandbox gave them.
package sandboxapi

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/erofsvm/erofsvm/runtime/options"
	"github.com/erofsvm/erofsvm/runtime/rpcstatus"
	"github.com/erofsvm/erofsvm/runtime/sandbox"
)

// The states of a pod as containerd's CRI plugin compares them: by the names that
// the CRI has for them.
const (
	ready    = "SANDBOX_READY"
	notReady = "SANDBOX_NOTREADY"
)

// Pods are what the calls are about; *sandbox.Sandbox has them.
type Pods interface {
	CreatePod(req *sandbox.PodRequest) error
	StartPod(ctx context.Context, id string) (sandbox.PodInfo, error)
	Pod(id string) (sandbox.PodInfo, error)
	WaitPod(ctx context.Context, id string) (sandbox.Exit, error)
	StopPod(ctx context.Context, id string) error
	RemovePod(ctx context.Context, id string) error
	PodMetrics(ctx context.Context) (*stats.Metrics, error)
}

// Service is the Sandbox service of one shim.
type Service struct {
	pods Pods
	// options are those of the shim's start: no call of this service has any.
	options *anypb.Any
	// shutdown ends the shim; it must not wait for the call that calls it.
	shutdown func()
}

var _ sandboxapi.TTRPCSandboxService = (*Service)(nil)

// New returns a service. started are the runtime options that came with the start
// of the shim, nil if there were none.
func New(pods Pods, started *anypb.Any, shutdown func()) *Service {
	return &Service{pods: pods, options: started, shutdown: shutdown}
}

// Register adds the service to a server, before it serves.
func (s *Service) Register(server *ttrpc.Server) {
	sandboxapi.RegisterTTRPCSandboxService(server, s)
}

// CreateSandbox begins to boot the VM. The options are a PodSandboxConfig of the
// CRI.
func (s *Service) CreateSandbox(_ context.Context, r *sandboxapi.CreateSandboxRequest) (*sandboxapi.CreateSandboxResponse, error) {
	req, err := s.request(r)
	if err == nil {
		err = s.pods.CreatePod(req)
	}
	if err != nil {
		return nil, rpcstatus.Of(fmt.Errorf("create sandbox %s: %w", r.SandboxID, err))
	}
	return &sandboxapi.CreateSandboxResponse{}, nil
}

func (s *Service) request(r *sandboxapi.CreateSandboxRequest) (*sandbox.PodRequest, error) {
	if len(r.Rootfs) > 0 {
		return nil, fmt.Errorf("it has a root filesystem, and no container to see it: %w", errdefs.ErrNotImplemented)
	}
	config, err := options.Config(s.options)
	if err != nil {
		return nil, err
	}
	if err := options.SetLogLevel(config.Log.Level); err != nil {
		return nil, err
	}
	pod, err := podConfig(r.Options)
	if err != nil {
		return nil, err
	}
	hostname := pod.GetHostname()
	if hostname == "" { // a pod in the network of its host
		if hostname, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("name of the host: %w", err)
		}
	}
	mounts, err := writeFiles(r.BundlePath, hostname, pod.GetDnsConfig())
	if err != nil {
		return nil, err
	}
	return &sandbox.PodRequest{
		ID: r.SandboxID, Bundle: r.BundlePath, Hostname: hostname, NetNS: r.NetnsPath, HostNetwork: hostNetwork(pod),
		Cgroup: cgroup(pod.GetLinux().GetCgroupParent(), r.SandboxID), Sysctls: pod.GetLinux().GetSysctls(), Mounts: mounts, Config: config, Annotations: pod.GetAnnotations(),
	}, nil
}

// StartSandbox waits until the pod can take containers.
func (s *Service) StartSandbox(ctx context.Context, r *sandboxapi.StartSandboxRequest) (*sandboxapi.StartSandboxResponse, error) {
	info, err := s.pods.StartPod(context.WithoutCancel(ctx), r.SandboxID) // every step has a deadline of its own
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &sandboxapi.StartSandboxResponse{Pid: pid(info), CreatedAt: timestamppb.New(info.Created)}, nil
}

// pid is never 0: containerd takes what has none for a process that has ended.
func pid(info sandbox.PodInfo) uint32 {
	if info.Pid == 0 {
		return uint32(os.Getpid())
	}
	return uint32(info.Pid)
}

// Platform is that of the guest, which is the host's.
func (s *Service) Platform(_ context.Context, r *sandboxapi.PlatformRequest) (*sandboxapi.PlatformResponse, error) {
	if _, err := s.pods.Pod(r.SandboxID); err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &sandboxapi.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: runtime.GOARCH}}, nil
}

// StopSandbox ends the VM, whatever runs in it.
func (s *Service) StopSandbox(ctx context.Context, r *sandboxapi.StopSandboxRequest) (*sandboxapi.StopSandboxResponse, error) {
	if r.TimeoutSecs > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.TimeoutSecs)*time.Second)
		defer cancel()
	}
	if err := s.pods.StopPod(ctx, r.SandboxID); err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &sandboxapi.StopSandboxResponse{}, nil
}

// WaitSandbox waits until the VM is gone.
func (s *Service) WaitSandbox(ctx context.Context, r *sandboxapi.WaitSandboxRequest) (*sandboxapi.WaitSandboxResponse, error) {
	exit, err := s.pods.WaitPod(ctx, r.SandboxID)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &sandboxapi.WaitSandboxResponse{ExitStatus: uint32(exit.Status), ExitedAt: timestamppb.New(exit.At)}, nil
}

// SandboxStatus says how the pod is.
func (s *Service) SandboxStatus(_ context.Context, r *sandboxapi.SandboxStatusRequest) (*sandboxapi.SandboxStatusResponse, error) {
	info, err := s.pods.Pod(r.SandboxID)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	status := &sandboxapi.SandboxStatusResponse{
		SandboxID: r.SandboxID, Pid: pid(info), State: notReady, CreatedAt: timestamppb.New(info.Created),
	}
	if info.Ready {
		status.State = ready
	}
	if info.Ended {
		status.ExitedAt = timestamppb.New(info.Exit.At)
	}
	return status, nil
}

// PingSandbox says whether the pod is ready.
func (s *Service) PingSandbox(_ context.Context, r *sandboxapi.PingRequest) (*sandboxapi.PingResponse, error) {
	info, err := s.pods.Pod(r.SandboxID)
	if err == nil && !info.Ready {
		err = fmt.Errorf("pod %s is not ready: %w", r.SandboxID, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &sandboxapi.PingResponse{}, nil
}

// ShutdownSandbox ends the VM, if it is still there, and the shim. containerd asks
// for it after a pod that could not be created, too.
func (s *Service) ShutdownSandbox(ctx context.Context, r *sandboxapi.ShutdownSandboxRequest) (*sandboxapi.ShutdownSandboxResponse, error) {
	if err := s.pods.RemovePod(context.WithoutCancel(ctx), r.SandboxID); err != nil && !errdefs.IsNotFound(err) {
		return nil, rpcstatus.Of(err)
	}
	s.shutdown()
	return &sandboxapi.ShutdownSandboxResponse{}, nil
}

// SandboxMetrics returns what the pod costs the host, or if it has no cgroup there
// what its containers use together, as io.containerd.cgroups.v2.Metrics.
func (s *Service) SandboxMetrics(ctx context.Context, r *sandboxapi.SandboxMetricsRequest) (*sandboxapi.SandboxMetricsResponse, error) {
	packed, err := s.metrics(ctx, r.SandboxID)
	if err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &sandboxapi.SandboxMetricsResponse{Metrics: &types.Metric{
		ID: r.SandboxID, Timestamp: timestamppb.Now(), Data: packed,
	}}, nil
}

func (s *Service) metrics(ctx context.Context, id string) (*anypb.Any, error) {
	if _, err := s.pods.Pod(id); err != nil {
		return nil, err
	}
	used, err := s.pods.PodMetrics(ctx)
	if err != nil {
		return nil, err
	}
	packed, err := typeurl.MarshalAnyToProto(used)
	if err != nil {
		return nil, fmt.Errorf("statistics of pod %s: %w", id, err)
	}
	return packed, nil
}

// errUpdate is what callers are to expect of a shim that has nothing to update.
var errUpdate = fmt.Errorf("the virtual machine of a pod grows with the limits of its containers, and not with its own: %w", errdefs.ErrNotImplemented)

// UpdateSandbox is refused, as the service's definition has it for shims that do
// not need it.
func (*Service) UpdateSandbox(context.Context, *sandboxapi.UpdateSandboxRequest) (*sandboxapi.UpdateSandboxResponse, error) {
	return nil, rpcstatus.Of(errUpdate)
}
