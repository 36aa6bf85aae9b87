package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// newBundle makes what containerd has made when it runs `start`: a bundle with
// a log fifo that it reads.
func newBundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "log")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return dir
}

// socketDir is short, as containerd's is.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestATooLongSocketDirectoryIsNamed(t *testing.T) {
	dir := "/" + strings.Repeat("d", 60)
	if _, _, err := listen(invocation{id: "x"}, dir); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v", err)
	}
}

// runShim runs an action as containerd does, and reads stdout and stderr
// together to their end.
func runShim(t *testing.T, bundle string, stdin []byte, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), asShim+"=1", "TTRPC_ADDRESS="+filepath.Join(bundle, "nobody.sock"))
	cmd.Stdin = bytes.NewReader(stdin)
	return cmd.CombinedOutput()
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func legacyOptions(t *testing.T) []byte {
	t.Helper()
	a, err := anypb.New(&runtimeoptions.Options{ConfigPath: "/etc/erofsvm/configuration.toml"})
	if err != nil {
		t.Fatal(err)
	}
	return marshal(t, a)
}

func TestStartServesWhateverTheContainerdLineSends(t *testing.T) {
	for _, tc := range []struct {
		name   string
		input  func(t *testing.T, id, dir string) []byte
		events string // where they go, "" for the environment's
	}{
		{name: "2.2 without options", input: func(*testing.T, string, string) []byte { return nil }},
		{name: "2.2 with options", input: func(t *testing.T, _, _ string) []byte { return legacyOptions(t) }},
		{name: "2.3 and 2.4", input: func(t *testing.T, id, dir string) []byte {
			return marshal(t, &bootstrap.BootstrapParams{
				InstanceID: id, Namespace: "test", SocketDir: proto.String(dir),
				ContainerdTtrpcAddress: "unix:///nowhere",
			})
		}, events: "unix:///nowhere"},
		{name: "parameters without an address for events", input: func(t *testing.T, id, dir string) []byte {
			return marshal(t, &bootstrap.BootstrapParams{InstanceID: id, Namespace: "test", SocketDir: proto.String(dir)})
		}},
		{name: "parameters of another shim", input: func(t *testing.T, _, dir string) []byte {
			return marshal(t, &bootstrap.BootstrapParams{InstanceID: "other", Namespace: "test", SocketDir: proto.String("/nowhere")})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bundle := newBundle(t)
			id := strings.ReplaceAll(filepath.Base(bundle)+tc.name, " ", "-")
			sockets := socketDir(t)
			out, err := runShim(t, bundle, tc.input(t, id, sockets), "-namespace", "test", "-id", id, "-address", bundle, "start")
			if err != nil {
				t.Fatalf("start: %v: %s", err, out)
			}
			path := checkReply(t, out)
			if tc.events == "" {
				tc.events = filepath.Join(bundle, "nobody.sock")
			}
			checkServes(t, path, tc.events)
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is left after the shim's end: %v", err)
			}
		})
	}
}

// checkReply reads the reply as containerd does (parseStartResponse).
func checkReply(t *testing.T, out []byte) (socket string) {
	t.Helper()
	var asProto bootstrap.BootstrapResult
	if proto.Unmarshal(out, &asProto) == nil {
		t.Fatalf("the reply is taken for a protobuf message: %s", out)
	}
	var reply bootstrap.BootstrapResult
	if err := json.Unmarshal(out, &reply); err != nil {
		t.Fatalf("reply %s: %v", out, err)
	}
	if reply.Version != 3 || reply.Protocol != "ttrpc" {
		t.Errorf("reply %s: want version 3 over ttrpc", out)
	}
	var mounts types.MountCapabilities
	found, err := reply.FindExtension(&mounts)
	if err != nil || !found {
		t.Fatalf("no mount capabilities in %s: %v", out, err)
	}
	if strings.Join(mounts.Types, ",") != "erofs" || strings.Join(mounts.Transforms, ",") != "mkdir,format" {
		t.Errorf("mount capabilities %v", &mounts)
	}
	return strings.TrimPrefix(reply.Address, "unix://")
}

// connect talks to the shim that serves a socket, and returns its pid.
func connect(t *testing.T, ctx context.Context, path string) (service task.TTRPCTaskService, pid int) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	service = task.NewTTRPCTaskClient(client)
	who, err := service.Connect(ctx, &task.ConnectRequest{})
	if err != nil {
		t.Fatalf("Connect: %v", err)
	}
	return service, int(who.ShimPid)
}

// watchEnd returns what waits for the end of a process.
func watchEnd(t *testing.T, pid int) (wait func()) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		defer unix.Close(pidfd)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10000)
		if n != 1 || err != nil {
			_ = unix.PidfdSendSignal(pidfd, syscall.SIGKILL, nil, 0)
			t.Fatalf("the shim does not end: %v", err)
		}
	}
}

// checkServes talks to the shim and asks for its end.
func checkServes(t *testing.T, path, events string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	service, pid := connect(t, ctx, path)
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !slices.Contains(strings.Split(string(environment), "\x00"), "TTRPC_ADDRESS="+events) {
		t.Errorf("the shim's environment does not send events to %s: %v", events, err)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("the shim %d is in session %d: %v", pid, sid, err)
	}
	if _, err := service.State(ctx, &task.StateRequest{ID: "nobody"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("State of an unknown task: %v", err)
	}
	if _, err := service.Checkpoint(ctx, &task.CheckpointTaskRequest{ID: "nobody"}); !errdefs.IsNotImplemented(errgrpc.ToNative(err)) {
		t.Errorf("Checkpoint: %v", err)
	}
	ended := watchEnd(t, pid)
	if _, err := service.Shutdown(ctx, &task.ShutdownRequest{}); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	ended()
}

// TestTheSandboxServiceIsServedWithTheOptionsOfTheStart: no call of that service
// has any, and the one that ends the shim is answered (containerd takes anything
// else for a pod that is still there).
func TestTheSandboxServiceIsServedWithTheOptionsOfTheStart(t *testing.T) {
	bundle := newBundle(t)
	id := filepath.Base(bundle)
	params := &bootstrap.BootstrapParams{InstanceID: id, Namespace: "test", SocketDir: proto.String(socketDir(t))}
	if err := params.AddExtension(&runtimeoptions.Options{ConfigBody: []byte("nonsense = 1")}); err != nil {
		t.Fatal(err)
	}
	out, err := runShim(t, bundle, marshal(t, params), "-namespace", "test", "-id", id, "-address", bundle, "start")
	if err != nil {
		t.Fatalf("start: %v: %s", err, out)
	}
	path := checkReply(t, out)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, pid := connect(t, ctx, path)
	ended := watchEnd(t, pid)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	pods := sandboxapi.NewTTRPCSandboxClient(client)
	_, err = pods.CreateSandbox(ctx, &sandboxapi.CreateSandboxRequest{SandboxID: "pod", BundlePath: bundle})
	if err := errgrpc.ToNative(err); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("CreateSandbox: %v", err)
	}
	if _, err := pods.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: "pod"}); err != nil {
		t.Errorf("ShutdownSandbox: %v", err)
	}
	ended()
}

// TestDeleteEndsAShimThatStillServes: containerd takes one for dead that did not
// answer in time, and asks it for nothing any more.
func TestDeleteEndsAShimThatStillServes(t *testing.T) {
	bundle := newBundle(t)
	id := filepath.Base(bundle)
	params := marshal(t, &bootstrap.BootstrapParams{InstanceID: id, Namespace: "test", SocketDir: proto.String(socketDir(t))})
	out, err := runShim(t, bundle, params, "-namespace", "test", "-id", id, "-address", bundle, "start")
	if err != nil {
		t.Fatalf("start: %v: %s", err, out)
	}
	path := checkReply(t, out)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, pid := connect(t, ctx, path)
	ended := watchEnd(t, pid)
	if out, err := runShim(t, bundle, nil, "-namespace", "test", "-id", id, "-bundle", bundle, "delete"); err != nil {
		t.Fatalf("delete: %v: %s", err, out)
	}
	ended()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestStartReplacesTheSocketOfADeadShim(t *testing.T) {
	dir := socketDir(t)
	inv := invocation{namespace: "test", id: "x", address: "/a"}
	l, path, err := listen(inv, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := listen(inv, dir); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second shim beside a live one: %v", err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	again, samePath, err := listen(inv, dir)
	if err != nil {
		t.Fatalf("after the first is dead: %v", err)
	}
	again.Close()
	if path != samePath {
		t.Errorf("socket moved from %s to %s", path, samePath)
	}
}

func TestDeleteOfABundleWithoutSandboxIsIdempotent(t *testing.T) {
	bundle := newBundle(t)
	for range 2 {
		out, err := runShim(t, bundle, nil, "-namespace", "test", "-id", "x", "-bundle", bundle, "delete")
		if err != nil {
			t.Fatalf("delete: %v: %s", err, out)
		}
		var reply task.DeleteResponse
		if err := proto.Unmarshal(out, &reply); err != nil || reply.ExitStatus != statusUnknown {
			t.Errorf("reply %q: %v", out, err)
		}
	}
}

func TestInfoClaimsMountsAndCarriesFeatures(t *testing.T) {
	out, err := runShim(t, t.TempDir(), nil, "-info")
	if err != nil {
		t.Fatalf("-info: %v: %s", err, out)
	}
	var info types.RuntimeInfo
	if err := proto.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	if got := info.Annotations["containerd.io/runtime-allow-mounts"]; got != "mkdir/*,format/*,erofs" {
		t.Errorf("mounts claimed: %q", got)
	}
	if info.Name != Name || info.Version.GetVersion() != Version {
		t.Errorf("info %v", &info)
	}
	var can features.Features
	if err := json.Unmarshal(info.Features.GetValue(), &can); err != nil || !strings.HasSuffix(info.Features.GetTypeUrl(), "/features/Features") {
		t.Fatalf("features %v: %v", info.Features, err)
	}
	// By it the CRI tells whether it can offer recursive read-only mounts.
	if !slices.Contains(can.MountOptions, "rro") {
		t.Errorf("mount options %q without rro", can.MountOptions)
	}
}

func TestBadCommandLinesAreRefused(t *testing.T) {
	for _, args := range [][]string{
		{"-nonsense"},
		{"start"},
		{"-namespace", "n", "start"},
		{"-namespace", "n", "-id", "i", "stop"},
	} {
		var out, errs bytes.Buffer
		if code := Main(append([]string{"shim"}, args...), strings.NewReader(""), &out, &errs); code == 0 {
			t.Errorf("%v: exit code 0", args)
		}
		if errs.Len() == 0 || out.Len() != 0 {
			t.Errorf("%v: stdout %q, stderr %q", args, &out, &errs)
		}
	}
}
