package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/storage"
)

// makeLower makes an EROFS layer with the files, and with the payload as
// /payload where asked for.
func makeLower(t *testing.T, files map[string]string, payload bool) string {
	t.Helper()
	mkfs := tool(t, "erofs-utils/bin/mkfs.erofs")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	for _, d := range []string{"proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if payload {
		run(t, []string{"CGO_ENABLED=0"}, "go", "build", "-ldflags", "-s -w", "-o", filepath.Join(tree, "payload"), "./testdata/payload")
	}
	layer := filepath.Join(dir, "layer.erofs")
	run(t, nil, mkfs, "--quiet", layer, tree)
	return layer
}

func makeUpper(t *testing.T) string {
	t.Helper()
	upper := filepath.Join(t.TempDir(), "rwlayer.img")
	if err := os.WriteFile(upper, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(upper, 64<<20); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "mkfs.ext4", "-q", "-F", upper)
	return upper
}

func upperStorage(id, source string) *pb.Storage {
	return &pb.Storage{Driver: "blk", Source: source, Fstype: "ext4", MountPoint: storage.RootfsPath(storage.Base, id), Options: []string{
		"rw", "X-kata.overlay-upper", "X-kata.multi-layer=true",
		"X-kata.mkdir.path={{ mount 0 }}/upper:0755", "X-kata.mkdir.path={{ mount 0 }}/work:0755",
	}}
}

func lowerStorage(id, source string) *pb.Storage {
	return &pb.Storage{Driver: "blk", Source: source, Fstype: "erofs", MountPoint: storage.RootfsPath(storage.Base, id), Options: []string{
		"ro", "X-kata.overlay-lower", "X-kata.multi-layer=true",
	}}
}

var someCapabilities = []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"}

// containerSpec is about what containerd asks for by default.
func containerSpec(id string, args ...string) *pb.Spec {
	return &pb.Spec{
		Version: "1.1.0",
		Root:    &pb.Root{Path: storage.RootfsPath(storage.Base, id)},
		Process: &pb.Process{
			Args: append([]string{"/payload"}, args...), Cwd: "/", Env: []string{"PATH=/"},
			User:            &pb.User{UID: 0, GID: 0, AdditionalGids: []uint32{7}},
			NoNewPrivileges: true,
			Capabilities:    &pb.LinuxCapabilities{Bounding: someCapabilities, Effective: someCapabilities, Permitted: someCapabilities},
			Rlimits:         []*pb.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 512, Hard: 1024}},
		},
		Hostname: "inside",
		Mounts: []*pb.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		},
		Linux: &pb.Linux{
			CgroupsPath: "/default/" + id,
			Namespaces:  []*pb.LinuxNamespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"}},
			Resources: &pb.LinuxResources{
				Devices: []*pb.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				Memory:  &pb.LinuxMemory{Limit: 100 << 20},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/bus"},
		},
	}
}

type readFunc func(context.Context, agentclient.Process, []byte) (int, error)

// output reads a stream to its end.
func output(ctx context.Context, read readFunc, p agentclient.Process) (string, error) {
	var all bytes.Buffer
	buf := make([]byte, 64<<10)
	for {
		n, err := read(ctx, p, buf)
		all.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return all.String(), nil
		}
		if err != nil {
			return all.String(), err
		}
	}
}

// collect waits for a process and its output, all at the same time.
func (g *guest) collect(t *testing.T, p agentclient.Process) (stdout, stderr string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	var errs [3]error
	all.Go(func() { stdout, errs[0] = output(ctx, g.client.ReadStdout, p) })
	all.Go(func() { stderr, errs[1] = output(ctx, g.client.ReadStderr, p) })
	all.Go(func() { status, errs[2] = g.client.WaitProcess(ctx, p) })
	all.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatalf("%+v: %v", p, err)
	}
	return stdout, stderr, status
}

// runContainer runs a container from create to remove.
func (g *guest) runContainer(t *testing.T, id string, storages []*pb.Storage, spec *pb.Spec) (stdout, stderr string, status int) {
	t.Helper()
	if err := g.client.CreateContainer(t.Context(), &pb.CreateContainerRequest{ContainerId: id, Storages: storages, OCI: spec}); err != nil {
		t.Fatal(err)
	}
	if err := g.client.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, status = g.collect(t, agentclient.Process{Container: id})
	if err := g.client.RemoveContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return stdout, stderr, status
}

// layers are the storages of a container on the three disks that the tests plug.
func layers(id string) []*pb.Storage {
	return []*pb.Storage{upperStorage(id, "08/01"), lowerStorage(id, "08/02"), lowerStorage(id, "08/03")}
}

// TestAgentInVM boots one guest, since that is what takes time, and asks all of
// it.
func TestAgentInVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a VM; -short was given")
	}
	g := startGuest(t)
	ctx := t.Context()
	if !t.Run("sandbox", func(t *testing.T) { testSandbox(t, g) }) ||
		!t.Run("disks are awaited", func(t *testing.T) { testDisksAreAwaited(t, g) }) {
		t.Fatalf("log of the agent: %s", g.log(t))
	}

	t.Run("the upper layer outlives the container", func(t *testing.T) {
		_, stderr, status := g.runContainer(t, "writer", layers("writer"), containerSpec("writer", "write", "/a", "changed"))
		if status != 0 {
			t.Fatalf("status %d, %s", status, stderr)
		}
		if out, _, _ := g.runContainer(t, "reader", layers("reader"), containerSpec("reader", "cat", "/a")); out != "changed" {
			t.Errorf("read %q", out)
		}
	})
	t.Run("what the specification asks for", func(t *testing.T) {
		out, stderr, status := g.runContainer(t, "facts", layers("facts"), containerSpec("facts", "facts"))
		if status != 0 {
			t.Fatalf("status %d, %s", status, stderr)
		}
		for _, want := range []string{
			"hostname: inside\n", "pid: 1\n", "NoNewPrivs: 1\n", "CapEff: 0000000000000421\n", "CapBnd: 0000000000000421\n", "Groups: 7",
			"core: 512 1024\n", "memory.max: 104857600 <nil>\n", "kcore: 0 <nil>\n",
			"sysctl: open /proc/sys/kernel/hostname: read-only file system\n", "overlay / overlay rw",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
	})
	t.Run("every byte of output", func(t *testing.T) {
		out, _, status := g.runContainer(t, "flood", layers("flood"), containerSpec("flood", "flood", "3000000"))
		if len(out) != 3000000 || status != 0 {
			t.Errorf("%d bytes, status %d", len(out), status)
		}
	})
	t.Run("exit status", func(t *testing.T) {
		if _, _, status := g.runContainer(t, "exit", layers("exit"), containerSpec("exit", "exit", "42")); status != 42 {
			t.Errorf("status %d", status)
		}
	})
	t.Run("a program that is not there", func(t *testing.T) { testNoProgram(t, g) })
	t.Run("streams, signals and execs", func(t *testing.T) { testRunning(t, g) })
	t.Run("signals to one process and to all", func(t *testing.T) { testSignalAll(t, g) })
	t.Run("terminal", func(t *testing.T) { testTerminal(t, g) })
	t.Run("streams by connections", func(t *testing.T) { testStreams(t, g) })
	t.Run("execs", func(t *testing.T) { testExecs(t, g) })
	t.Run("pause", func(t *testing.T) { testPause(t, g) })
	t.Run("update and statistics", func(t *testing.T) { testUpdate(t, g) })
	t.Run("out of memory", func(t *testing.T) { testOOM(t, g) })
	t.Run("hooks and sysctls", func(t *testing.T) { testHooks(t, g) })
	t.Run("seccomp", func(t *testing.T) { testSeccomp(t, g) })
	t.Run("containers of a pod", func(t *testing.T) { testPod(t, g) })
	t.Run("many short execs", func(t *testing.T) { testManyExecs(t, g) })
	t.Run("a disk that does not come", func(t *testing.T) {
		client := agentclient.New(g.dial(t, layout.PortAgent), agentclient.Deadlines{Create: 2 * time.Second})
		defer client.Close()
		err := client.CreateContainer(ctx, &pb.CreateContainerRequest{
			ContainerId: "late", Storages: []*pb.Storage{lowerStorage("late", "08/1f")}, OCI: containerSpec("late", "exit", "0"),
		})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "08/1f") {
			t.Errorf("%v", err)
		}
	})
	t.Run("read-only from one layer", func(t *testing.T) {
		_, stderr, status := g.runContainer(t, "ro", []*pb.Storage{lowerStorage("ro", "08/02")}, containerSpec("ro", "write", "/x", "y"))
		if status != 1 || !strings.Contains(stderr, "read-only file system") {
			t.Errorf("status %d, %q", status, stderr)
		}
	})
	testLayers(t, g)
	t.Run("files go below the base only", func(t *testing.T) {
		f := agentclient.File{Path: storage.Base + "/shared/containers/x", Size: 3 << 20, Mode: 0o640, DirMode: 0o755}
		if err := g.client.CopyFile(ctx, f, bytes.NewReader(make([]byte, 3<<20))); err != nil {
			t.Error(err)
		}
		f.Path = "/etc/passwd"
		if err := g.client.CopyFile(ctx, f, bytes.NewReader(make([]byte, 3<<20))); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%v", err)
		}
	})
	t.Run("what is plugged comes online", func(t *testing.T) { testPlug(t, g) })
	if err := g.client.DestroySandbox(ctx); err != nil {
		t.Error(err)
	}
	log := g.log(t)
	if !strings.Contains(log, `"msg":"agent serves"`) {
		t.Error("the log does not say that the agent serves")
	}
	t.Logf("log of the agent: %s", log)
}

func testSandbox(t *testing.T, g *guest) {
	ctx := t.Context()
	// The same seed twice gives other numbers all the same, since it only adds.
	who := agentclient.Personality{Entropy: bytes.Repeat([]byte{1, 2, 3, 4}, 16), Time: time.Unix(2e9, 0), Hostname: "early", MachineID: strings.Repeat("ab", 16)}
	first, err := g.client.Personalise(ctx, who)
	if err != nil {
		t.Fatal(err)
	}
	second, err := g.client.Personalise(ctx, who)
	if err != nil || bytes.Equal(first, second) || bytes.Equal(first, make([]byte, len(first))) {
		t.Errorf("%x, then %x, %v", first, second, err)
	}
	if err := g.client.SetGuestDateTime(ctx, time.Now()); err != nil {
		t.Error(err)
	}
	if err := g.client.ReseedRandomDev(ctx, bytes.Repeat([]byte{1, 2, 3, 4}, 16)); err != nil {
		t.Error(err)
	}
	if err := g.client.CreateSandbox(ctx, &pb.CreateSandboxRequest{Hostname: "pod", Dns: []string{"nameserver 192.0.2.1"}, SandboxId: "pod", Storages: []*pb.Storage{{
		Driver: "ephemeral", Source: "shm", Fstype: "tmpfs", MountPoint: podMemory, Options: []string{"nosuid", "nodev", "noexec", "mode=1777", "size=1048576"},
	}}}); err != nil {
		t.Error(err)
	}
	details, err := g.client.GetGuestDetails(ctx)
	if err != nil || !details.GetAgentDetails().GetInitDaemon() {
		t.Errorf("details: %v, %v", details, err)
	}
	if got := details.GetAgentDetails().GetExtraFeatures(); !slices.Contains(got, streamwire.Feature) {
		t.Errorf("features: %v", got)
	}
	if _, err := g.agent.GetMetrics(ctx, &pb.GetMetricsRequest{}); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "GetMetrics") {
		t.Errorf("a method that is not there: %v", err)
	}
}

// testDisksAreAwaited plugs the disks while CreateContainer waits for them, the
// last one first.
func testDisksAreAwaited(t *testing.T, g *guest) {
	ctx := t.Context()
	top := makeLower(t, map[string]string{"who": "upper lower\n", "a": "from 1\n"}, true)
	bottom := makeLower(t, map[string]string{"who": "bottom\n", "b": "from 2\n"}, false)
	upper := makeUpper(t)
	created := make(chan error, 1)
	began := time.Now()
	go func() {
		created <- g.client.CreateContainer(ctx, &pb.CreateContainerRequest{
			ContainerId: "first", Storages: layers("first"), OCI: containerSpec("first", "cat", "/who", "/a", "/b"),
		})
	}()
	g.plug(t, 3, bottom, true)
	g.plug(t, 2, top, true)
	g.plug(t, 1, upper, false)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	t.Logf("plug 3 disks and create: %v", time.Since(began))
	if err := g.client.StartContainer(ctx, "first"); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, status := g.collect(t, agentclient.Process{Container: "first"})
	if want := "upper lower\nfrom 1\nfrom 2\n"; stdout != want || stderr != "" || status != 0 {
		t.Errorf("stdout %q, want %q; stderr %q, status %d", stdout, want, stderr, status)
	}
	if err := g.client.StartContainer(ctx, "first"); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("start of a stopped container: %v", err)
	}
	if err := g.client.RemoveContainer(ctx, "first"); err != nil {
		t.Error(err)
	}
	if err := g.client.RemoveContainer(ctx, "first"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("second removal: %v", err)
	}
}

func testNoProgram(t *testing.T, g *guest) {
	spec := containerSpec("none", "x")
	spec.Process.Args[0] = "/nothing"
	err := g.client.CreateContainer(t.Context(), &pb.CreateContainerRequest{ContainerId: "none", Storages: layers("none"), OCI: spec})
	if err == nil || !strings.Contains(err.Error(), "/nothing") {
		t.Errorf("%v", err)
	}
	// Nothing is left that would be in the way of the next one.
	if _, _, status := g.runContainer(t, "none", layers("none"), containerSpec("none", "exit", "3")); status != 3 {
		t.Errorf("status %d", status)
	}
}

func testRunning(t *testing.T, g *guest) {
	ctx := t.Context()
	p := agentclient.Process{Container: "long"}
	if err := g.client.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "long", Storages: layers("long"), OCI: containerSpec("long", "cat")}); err != nil {
		t.Fatal(err)
	}
	if err := g.client.RemoveContainer(ctx, "long"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("removal of a created container: %v", err)
	}
	if err := g.client.StartContainer(ctx, "long"); err != nil {
		t.Fatal(err)
	}
	if err := g.client.StartContainer(ctx, "long"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("second start: %v", err)
	}

	// Two waiters, and both hear.
	waits := make(chan int, 2)
	for range 2 {
		go func() {
			status, err := g.client.WaitProcess(ctx, p)
			if err != nil {
				status = -1
			}
			waits <- status
		}()
	}
	if n, err := g.client.WriteStdin(ctx, p, []byte("through the pipe\n")); err != nil || n != 17 {
		t.Errorf("wrote %d: %v", n, err)
	}
	buf := make([]byte, 100)
	if n, err := g.client.ReadStdout(ctx, p, buf); err != nil || string(buf[:n]) != "through the pipe\n" {
		t.Errorf("read %q: %v", buf[:n], err)
	}

	exec := func(id string, args ...string) agentclient.Process {
		t.Helper()
		spec := containerSpec("long", args...).Process
		if err := g.client.ExecProcess(ctx, &pb.ExecProcessRequest{ContainerId: "long", ExecId: id, Process: spec}); err != nil {
			t.Fatal(err)
		}
		return agentclient.Process{Container: "long", Exec: id}
	}
	if out, stderr, status := g.collect(t, exec("echo", "echo", "from", "exec")); out != "from exec\n" || stderr != "to stderr\n" || status != 0 {
		t.Errorf("exec: %q, %q, %d", out, stderr, status)
	}
	if out, _, status := g.collect(t, exec("orphan", "orphan")); out == "" || status != 0 {
		t.Errorf("exec: %q, %d", out, status)
	}
	waiting := exec("wait", "wait")
	if n, err := g.client.ReadStdout(ctx, waiting, buf); err != nil || string(buf[:n]) != "waiting\n" {
		t.Errorf("read %q: %v", buf[:n], err)
	}
	if err := g.client.SignalProcess(ctx, waiting, syscall.SIGUSR1); err != nil {
		t.Error(err)
	}
	if out, _, status := g.collect(t, waiting); out != "user defined signal 1\n" || status != 7 {
		t.Errorf("signalled: %q, %d", out, status)
	}
	stays := exec("stays", "wait")

	if err := g.client.SignalProcess(ctx, p, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	for range 2 {
		if status := <-waits; status != 137 {
			t.Errorf("status %d", status)
		}
	}
	if _, _, status := g.collect(t, stays); status != 137 {
		t.Errorf("exec in a killed container: %d", status)
	}
	if status, err := g.client.WaitProcess(ctx, p); err != nil || status != 137 {
		t.Errorf("late wait: %d, %v", status, err)
	}
	if err := g.client.SignalProcess(ctx, p, syscall.SIGTERM); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("signal after the end: %v", err)
	}
	if err := g.client.RemoveContainer(ctx, "long"); err != nil {
		t.Error(err)
	}
}

func testTerminal(t *testing.T, g *guest) {
	ctx := t.Context()
	spec := containerSpec("tty", "tty")
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &pb.Box{Height: 12, Width: 34}
	if err := g.client.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "tty", Storages: layers("tty"), OCI: spec}); err != nil {
		t.Fatal(err)
	}
	p := agentclient.Process{Container: "tty"}
	if err := g.client.StartContainer(ctx, "tty"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := g.client.ReadStdout(ctx, p, buf); err != nil || !strings.Contains(string(buf[:n]), "terminal 12 34") {
		t.Errorf("the size it began with: %q, %v", buf[:n], err)
	}
	if err := g.client.TtyWinResize(ctx, p, 30, 100); err != nil {
		t.Error(err)
	}
	if _, err := g.client.WriteStdin(ctx, p, []byte("typed\n")); err != nil {
		t.Error(err)
	}
	out, stderr, status := g.collect(t, p)
	if !strings.Contains(out, "read typed") || stderr != "" || status != 0 {
		t.Errorf("%q, %q, %d", out, stderr, status)
	}
	if err := g.client.RemoveContainer(ctx, "tty"); err != nil {
		t.Error(err)
	}
}
