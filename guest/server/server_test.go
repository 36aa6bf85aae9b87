package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/container"
	"github.com/erofsvm/erofsvm/guest/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves the real agent, without containers, on a Unix socket.
func serve(t *testing.T) (pb.AgentServiceService, pb.HealthService, string) {
	t.Helper()
	base := t.TempDir()
	ready := make(chan struct{})
	close(ready)
	s, err := New(Config{
		Containers: container.NewManager(container.Dirs{Base: base, State: t.TempDir()}, storage.System{}),
		Sandbox:    &Sandbox{Base: base},
		Log:        slog.New(slog.DiscardHandler),
		Ready:      ready,
	})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := Serve(ctx, s, l); err != nil {
			t.Error(err)
		}
	})
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() {
		_ = client.Close()
		_ = client.UserOnCloseWait(context.Background())
		cancel()
		serving.Wait()
	})
	return pb.NewAgentServiceClient(client), pb.NewHealthClient(client), base
}

func wantCode(t *testing.T, err error, code codes.Code, says string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), says) {
		t.Errorf("%v, want %v with %q", err, code, says)
	}
}

func TestHealth(t *testing.T) {
	_, health, _ := serve(t)
	if r, err := health.Check(t.Context(), &pb.CheckRequest{}); err != nil || r.GetStatus() != pb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := health.Version(t.Context(), &pb.CheckRequest{}); err != nil || r.GetAgentVersion() != Version {
		t.Errorf("%v, %v", r, err)
	}
}

func TestErrorsHaveTheirStatus(t *testing.T) {
	agent, _, _ := serve(t)
	ctx := t.Context()
	_, err := agent.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: "c"})
	wantCode(t, err, codes.NotFound, `container "c"`)
	_, err = agent.GetMetrics(ctx, &pb.GetMetricsRequest{})
	wantCode(t, err, codes.Unimplemented, "GetMetrics")
	_, err = agent.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "../c"})
	wantCode(t, err, codes.InvalidArgument, "../c")
	_, err = agent.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "c"})
	wantCode(t, err, codes.InvalidArgument, "no lower layer")
	_, err = agent.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "c", StdinPort: 1, StdoutPort: 1})
	wantCode(t, err, codes.Unimplemented, "[stdin_port stdout_port]")
	_, err = agent.SignalProcess(ctx, &pb.SignalProcessRequest{ContainerId: "c", Signal: 65})
	wantCode(t, err, codes.InvalidArgument, "65")
	_, err = agent.ReadStdout(ctx, &pb.ReadStreamRequest{ContainerId: "c"})
	wantCode(t, err, codes.InvalidArgument, "0 bytes")
	_, err = agent.TtyWinResize(ctx, &pb.TtyWinResizeRequest{ContainerId: "c", Row: 1 << 16})
	wantCode(t, err, codes.InvalidArgument, "65536")
	_, err = agent.ReseedRandomDev(ctx, &pb.ReseedRandomDevRequest{Data: make([]byte, maxSeed+1)})
	wantCode(t, err, codes.InvalidArgument, "seed")
	_, err = agent.PauseContainer(ctx, &pb.PauseContainerRequest{ContainerId: "c"})
	wantCode(t, err, codes.NotFound, `container "c"`)
	_, err = agent.ResumeContainer(ctx, &pb.ResumeContainerRequest{ContainerId: "c"})
	wantCode(t, err, codes.NotFound, `container "c"`)
	_, err = agent.UpdateContainer(ctx, &pb.UpdateContainerRequest{ContainerId: "c"})
	wantCode(t, err, codes.NotFound, `container "c"`)
	_, err = agent.StatsContainer(ctx, &pb.StatsContainerRequest{ContainerId: "c"})
	wantCode(t, err, codes.NotFound, `container "c"`)
	_, err = agent.SetGuestDateTime(ctx, &pb.SetGuestDateTimeRequest{Usec: 1e6})
	wantCode(t, err, codes.InvalidArgument, "microseconds")
	wantCode(t, toStatus(io.EOF), codes.OutOfRange, "")
}

func TestCallThatPanicsIsAnAnswer(t *testing.T) {
	var log bytes.Buffer
	c := Config{Log: slog.New(slog.NewTextHandler(&log, nil))}
	_, err := c.intercept(t.Context(), nil, &ttrpc.UnaryServerInfo{FullMethod: "/x/Boom"}, func(context.Context, func(any) error) (any, error) {
		panic("boom")
	})
	wantCode(t, err, codes.Internal, "boom")
	if !strings.Contains(log.String(), "Boom") {
		t.Errorf("log: %s", log.String())
	}
}

func TestMethodThatIsNotThereSaysItsName(t *testing.T) {
	if _, err := (&agent{}).AddSwap(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "AddSwap") {
		t.Errorf("%v", err)
	}
}

func TestSandbox(t *testing.T) {
	agent, _, base := serve(t)
	ctx := t.Context()
	for name, r := range map[string]*pb.CreateSandboxRequest{
		"hostname":   {Hostname: "a b"},
		"long name":  {Hostname: strings.Repeat("a", 65)},
		"dns":        {Dns: []string{"nameserver 1.1.1.1\nsearch evil"}},
		"many lines": {Dns: make([]string, maxDNSLines+1)},
		"id":         {SandboxId: "a/b"},
		"driver":     {Storages: []*pb.Storage{{Driver: "blk", Fstype: "tmpfs", MountPoint: base + "/sandbox/shm"}}},
		"filesystem": {Storages: []*pb.Storage{{Driver: "ephemeral", Fstype: "proc", MountPoint: base + "/sandbox/shm"}}},
		"outside":    {Storages: []*pb.Storage{{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: base + "/sandbox/../shm"}}},
		"option":     {Storages: []*pb.Storage{{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: base + "/sandbox/shm", Options: []string{"uid=0"}}}},
	} {
		if _, err := agent.CreateSandbox(ctx, r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := agent.CreateSandbox(ctx, &pb.CreateSandboxRequest{GuestHookPath: "/hooks", KernelModules: []*pb.KernelModule{{}}})
	wantCode(t, err, codes.Unimplemented, "[guest_hook_path kernel_modules]")

	// No hostname: this is the host of the test.
	r := &pb.CreateSandboxRequest{SandboxId: "pod", Dns: []string{"nameserver 192.0.2.1", "search example.org"}}
	for range 2 { // a guest may be given another pod
		if _, err := agent.CreateSandbox(ctx, r); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(base, "sandbox", "resolv.conf"))
		if err != nil || string(text) != "nameserver 192.0.2.1\nsearch example.org\n" {
			t.Errorf("%q, %v", text, err)
		}
		_, err = agent.CreateSandbox(ctx, r)
		wantCode(t, err, codes.AlreadyExists, "sandbox")
		if _, err := agent.DestroySandbox(ctx, &pb.DestroySandboxRequest{}); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(base, "sandbox")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it is left: %v", err)
		}
	}
}

func TestExecIDOfTheContainerItself(t *testing.T) {
	for exec, want := range map[string]string{"": "", "c": "", "e": "e"} {
		if got := execID(&pb.WaitProcessRequest{ContainerId: "c", ExecId: exec}); got != want {
			t.Errorf("%q: %q", exec, got)
		}
	}
}

// What is rehearsed leaves a guest as it was: without a sandbox and a container.
func TestRehearsalChangesNothing(t *testing.T) {
	base := t.TempDir()
	ready := make(chan struct{})
	close(ready)
	var log bytes.Buffer
	c := Config{
		Containers: container.NewManager(container.Dirs{Base: base, State: t.TempDir()}, storage.System{}),
		Sandbox:    &Sandbox{Base: base},
		Log:        slog.New(slog.NewTextHandler(&log, nil)),
		Ready:      ready,
	}
	for range 2 {
		if err := Rehearse(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(base); len(left) != 0 || err != nil {
		t.Errorf("left in %s: %v, %v", base, left, err)
	}
	if n := c.Containers.Len(); n != 0 || !c.Sandbox.claim() || log.Len() != 0 {
		t.Errorf("%d containers, the log: %q", n, log.String())
	}
}

func TestRehearsalEndsWithItsContext(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	if err := Rehearse(ended, Config{Containers: container.NewManager(container.Dirs{}, storage.System{}), Sandbox: &Sandbox{}}); err == nil {
		t.Error("without an answer it is no rehearsal")
	}
}
