package sandboxapi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	cgroups "github.com/containerd/cgroups/v3/cgroup2/stats"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/runtime/sandbox"
	"github.com/erofsvm/erofsvm/runtime/sandboxapi/podconfig"
)

// fakePods stands for a sandbox, whose VM it does not have.
type fakePods struct {
	request *sandbox.PodRequest
	info    sandbox.PodInfo
	err     error
	calls   []string
}

func (f *fakePods) called(method, id string) error {
	f.calls = append(f.calls, method+" "+id)
	return f.err
}

func (f *fakePods) CreatePod(r *sandbox.PodRequest) error {
	f.request = r
	return f.called("create", r.ID)
}

func (f *fakePods) StartPod(_ context.Context, id string) (sandbox.PodInfo, error) {
	return f.info, f.called("start", id)
}

func (f *fakePods) Pod(string) (sandbox.PodInfo, error) { return f.info, f.err }

func (f *fakePods) WaitPod(context.Context, string) (sandbox.Exit, error) { return f.info.Exit, f.err }

func (f *fakePods) StopPod(_ context.Context, id string) error   { return f.called("stop", id) }
func (f *fakePods) RemovePod(_ context.Context, id string) error { return f.called("remove", id) }

func (f *fakePods) PodMetrics(context.Context) (*cgroups.Metrics, error) {
	return &cgroups.Metrics{Pids: &cgroups.PidsStat{Current: 5}}, f.err
}

// packed packs a message as containerd does, whose type URLs have no prefix.
func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}
}

func TestThePodIsWhatTheCRISays(t *testing.T) {
	pods, bundle := &fakePods{}, t.TempDir()
	started := packed(t, &runtimeoptions.Options{ConfigBody: []byte("[hypervisor]\nvcpus = 3\n")})
	s := New(pods, started, func() {})
	_, err := s.CreateSandbox(t.Context(), &sandboxapi.CreateSandboxRequest{
		SandboxID: "pod", BundlePath: bundle, Options: packed(t, &cri.PodSandboxConfig{
			Hostname:  "name",
			DnsConfig: &cri.DNSConfig{Servers: []string{"192.0.2.1", "2001:db8::1"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5", "edns0"}},
			Linux:     &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}},
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	r := pods.request
	if r.ID != "pod" || r.Bundle != bundle || r.Hostname != "name" || r.Config.Hypervisor.VCPUs != 3 ||
		!reflect.DeepEqual(r.Sysctls, map[string]string{"net.ipv4.ip_forward": "1"}) {
		t.Errorf("%+v", r)
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/etc/hostname": "name\n", "/etc/hosts": string(hosts),
		"/etc/resolv.conf": "search a.example b.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:5 edns0\n",
	}
	for _, m := range r.Mounts {
		if content, err := os.ReadFile(m.Source); err != nil || string(content) != want[m.Destination] {
			t.Errorf("%s: %q, %v", m.Destination, content, err)
		}
		if filepath.Dir(m.Source) != bundle {
			t.Errorf("%s lies at %s", m.Destination, m.Source)
		}
		delete(want, m.Destination)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

func TestAPodOfWhichNothingIsSaidHasTheHostsNames(t *testing.T) {
	pods := &fakePods{}
	if _, err := New(pods, nil, func() {}).CreateSandbox(t.Context(), &sandboxapi.CreateSandboxRequest{SandboxID: "pod", BundlePath: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if name, err := os.Hostname(); err != nil || pods.request.Hostname != name || pods.request.HostNetwork {
		t.Errorf("%+v, %v", pods.request, err)
	}
}

func TestAPodInTheHostsNetworkIsCalledOne(t *testing.T) {
	pods := &fakePods{}
	_, err := New(pods, nil, func() {}).CreateSandbox(t.Context(), &sandboxapi.CreateSandboxRequest{
		SandboxID: "pod", BundlePath: t.TempDir(), Options: packed(t, &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}},
		}}),
	})
	if err != nil || !pods.request.HostNetwork {
		t.Errorf("%+v, %v", pods.request, err)
	}
}

func TestWhatAPodCannotBeIsRefusedByName(t *testing.T) {
	users := &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD}},
	}}}
	dns := func(c *cri.DNSConfig) *anypb.Any { return packed(t, &cri.PodSandboxConfig{DnsConfig: c}) }
	for _, tc := range []struct {
		says    string
		class   func(error) bool
		request *sandboxapi.CreateSandboxRequest
		options *anypb.Any
	}{
		{"root filesystem", errdefs.IsNotImplemented, &sandboxapi.CreateSandboxRequest{Rootfs: []*types.Mount{{}}}, nil},
		{"PodSandboxConfig", errdefs.IsInvalidArgument, &sandboxapi.CreateSandboxRequest{Options: packed(t, &cri.DNSConfig{})}, nil},
		{"options", errdefs.IsInvalidArgument, &sandboxapi.CreateSandboxRequest{Options: &anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: []byte{0xff}}}, nil},
		{"userns_options", errdefs.IsNotImplemented, &sandboxapi.CreateSandboxRequest{Options: packed(t, users)}, nil},
		{"nameserver", errdefs.IsInvalidArgument, &sandboxapi.CreateSandboxRequest{Options: dns(&cri.DNSConfig{Servers: []string{"a\nnameserver b"}})}, nil},
		{"search", errdefs.IsInvalidArgument, &sandboxapi.CreateSandboxRequest{Options: dns(&cri.DNSConfig{Searches: []string{""}})}, nil},
		{"ConfigBody", errdefs.IsInvalidArgument, &sandboxapi.CreateSandboxRequest{}, packed(t, &runtimeoptions.Options{ConfigBody: []byte("x = 1")})},
	} {
		pods := &fakePods{}
		tc.request.SandboxID, tc.request.BundlePath = "pod", t.TempDir()
		_, err := New(pods, tc.options, func() {}).CreateSandbox(t.Context(), tc.request)
		if err := errgrpc.ToNative(err); !tc.class(err) || !strings.Contains(fmt.Sprint(err), tc.says) || len(pods.calls) > 0 {
			t.Errorf("%s: %v, %q", tc.says, err, pods.calls)
		}
	}
}

// TestThePodsCgroupIsBelowThatOfItsKubelet, whose driver is cgroupfs or systemd.
func TestThePodsCgroupIsBelowThatOfItsKubelet(t *testing.T) {
	for parent, want := range map[string]string{
		"":                                    "",
		"/kubepods/burstable/pod1":            "/kubepods/burstable/pod1/pod",
		"/kubepods.slice/kubepods-pod1.slice": "kubepods-pod1.slice:cri-containerd:pod",
	} {
		pods := &fakePods{}
		_, err := New(pods, nil, func() {}).CreateSandbox(t.Context(), &sandboxapi.CreateSandboxRequest{
			SandboxID: "pod", BundlePath: t.TempDir(), Options: packed(t, &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{CgroupParent: parent}}),
		})
		if err != nil || pods.request.Cgroup != want {
			t.Errorf("%q: %q, %v, want %q", parent, pods.request.Cgroup, err, want)
		}
	}
}

func TestStatesAreThoseOfTheCRI(t *testing.T) {
	pods := &fakePods{info: sandbox.PodInfo{Created: time.Unix(1, 0)}}
	s := New(pods, nil, func() {})
	status := func() *sandboxapi.SandboxStatusResponse {
		t.Helper()
		st, err := s.SandboxStatus(t.Context(), &sandboxapi.SandboxStatusRequest{SandboxID: "pod"})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := status(); st.State != cri.PodSandboxState_SANDBOX_NOTREADY.String() || st.Pid == 0 || st.CreatedAt.GetSeconds() != 1 {
		t.Errorf("before its start: %v", st)
	}
	if _, err := s.PingSandbox(t.Context(), &sandboxapi.PingRequest{SandboxID: "pod"}); !errdefs.IsUnavailable(errgrpc.ToNative(err)) {
		t.Errorf("ping: %v", err)
	}
	pods.info.Ready, pods.info.Pid = true, 7
	if st := status(); st.State != cri.PodSandboxState_SANDBOX_READY.String() || st.Pid != 7 || st.ExitedAt != nil {
		t.Errorf("ready: %v", st)
	}
	if _, err := s.PingSandbox(t.Context(), &sandboxapi.PingRequest{SandboxID: "pod"}); err != nil {
		t.Errorf("ping: %v", err)
	}
	pods.info.Ready, pods.info.Ended, pods.info.Exit = false, true, sandbox.Exit{Status: 137, At: time.Unix(2, 0)}
	if st := status(); st.State != cri.PodSandboxState_SANDBOX_NOTREADY.String() || st.ExitedAt.GetSeconds() != 2 {
		t.Errorf("ended: %v", st)
	}
	if w, err := s.WaitSandbox(t.Context(), &sandboxapi.WaitSandboxRequest{SandboxID: "pod"}); err != nil || w.ExitStatus != 137 {
		t.Errorf("wait: %v, %v", w, err)
	}
	if p, err := s.Platform(t.Context(), &sandboxapi.PlatformRequest{SandboxID: "pod"}); err != nil || p.Platform.OS != "linux" || p.Platform.Architecture == "" {
		t.Errorf("platform: %v, %v", p, err)
	}
}

func TestMetricsAreThoseOfCgroupV2(t *testing.T) {
	r, err := New(&fakePods{}, nil, func() {}).SandboxMetrics(t.Context(), &sandboxapi.SandboxMetricsRequest{SandboxID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := typeurl.UnmarshalAny(r.Metrics.Data)
	if m, ok := got.(*cgroups.Metrics); err != nil || !ok || m.Pids.Current != 5 || r.Metrics.ID != "pod" || r.Metrics.Timestamp == nil {
		t.Errorf("%v, %v", r, err)
	}
}

func TestShutdownEndsTheShimWhetherThereIsAPodOrNot(t *testing.T) {
	for _, tc := range []struct {
		err  error
		ends bool
	}{{nil, true}, {errdefs.ErrNotFound, true}, {errors.New("QEMU stays"), false}} {
		ended := false
		pods := &fakePods{err: tc.err}
		_, err := New(pods, nil, func() { ended = true }).ShutdownSandbox(t.Context(), &sandboxapi.ShutdownSandboxRequest{SandboxID: "pod"})
		if ended != tc.ends || (err == nil) != tc.ends || !reflect.DeepEqual(pods.calls, []string{"remove pod"}) {
			t.Errorf("%v: ended %v, %v, %q", tc.err, ended, err, pods.calls)
		}
	}
}

func TestErrorsHaveTheirClass(t *testing.T) {
	s := New(&fakePods{err: fmt.Errorf("pod pod: %w", errdefs.ErrNotFound)}, nil, func() {})
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"start":   func() error { _, err := s.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{}); return err },
		"stop":    func() error { _, err := s.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{TimeoutSecs: 1}); return err },
		"wait":    func() error { _, err := s.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{}); return err },
		"status":  func() error { _, err := s.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{}); return err },
		"ping":    func() error { _, err := s.PingSandbox(ctx, &sandboxapi.PingRequest{}); return err },
		"metrics": func() error { _, err := s.SandboxMetrics(ctx, &sandboxapi.SandboxMetricsRequest{}); return err },
	} {
		if err := call(); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.UpdateSandbox(ctx, &sandboxapi.UpdateSandboxRequest{}); !errdefs.IsNotImplemented(errgrpc.ToNative(err)) {
		t.Errorf("update: %v", err)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("192.0.2.1", "example", "ndots:5")
	f.Add("a\nnameserver b", "", "x y")
	f.Fuzz(func(t *testing.T, server, search, option string) {
		text, err := resolvConf(&podconfig.DNSConfig{Servers: []string{server}, Searches: []string{search}, Options: []string{option}})
		if err == nil && strings.Count(string(text), "\n") != 3 {
			t.Errorf("%q", text)
		}
	})
}
