package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
)

func (g *guest) stats(t *testing.T, id string) *pb.StatsContainerResponse {
	t.Helper()
	stats, err := g.agent.StatsContainer(t.Context(), &pb.StatsContainerRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

func (g *guest) count(t *testing.T, id, key string) uint64 {
	t.Helper()
	v, counted := g.stats(t, id).GetCgroupStats().GetMemoryStats().GetStats()[key]
	if !counted {
		t.Errorf("%s is not counted", key)
	}
	return v
}

func testPause(t *testing.T, g *guest) {
	ctx := t.Context()
	pause, resume := &pb.PauseContainerRequest{ContainerId: "paused"}, &pb.ResumeContainerRequest{ContainerId: "paused"}
	p := g.started(t, containerSpec("paused", "burn"), "paused")
	if n, err := g.client.ReadStdout(ctx, p, make([]byte, 100)); n == 0 || err != nil {
		t.Error(err)
	}
	for range 2 {
		if _, err := g.agent.PauseContainer(ctx, pause); err != nil {
			t.Fatal(err)
		}
		used := g.count(t, "paused", "cpu.stat.usage_usec")
		if _, err := g.agent.PauseContainer(ctx, pause); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "paused") {
			t.Errorf("pause of a paused container: %v", err)
		}
		err := g.client.ExecProcess(ctx, &pb.ExecProcessRequest{ContainerId: "paused", ExecId: "e", Process: containerSpec("paused", "echo").Process})
		if !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("exec in a paused container: %v", err)
		}
		// Longer than the process would need to show up in the counter.
		g.idle(t, 100*time.Millisecond)
		if now := g.count(t, "paused", "cpu.stat.usage_usec"); now > used+1000 {
			t.Errorf("a paused container computed for %d µs", now-used)
		}
		if _, err := g.agent.ResumeContainer(ctx, resume); err != nil {
			t.Fatal(err)
		}
		if _, err := g.agent.ResumeContainer(ctx, resume); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("resume of a running container: %v", err)
		}
		if out, _ := g.exec(t, "paused", "e", "echo", "awake"); out != "awake\n" {
			t.Errorf("%q", out)
		}
		if now := g.count(t, "paused", "cpu.stat.usage_usec"); now <= used {
			t.Error("it did not go on")
		}
	}
	if _, err := g.agent.PauseContainer(ctx, pause); err != nil {
		t.Fatal(err)
	}
	if code := g.removed(t, p); code != 137 {
		t.Errorf("a paused container that is killed: status %d", code)
	}
}

// idle lets the guest be for some time: another process of it sees to that.
func (g *guest) idle(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if _, err := g.client.GetOOMEvent(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an event: %v", err)
	}
}

func testUpdate(t *testing.T, g *guest) {
	ctx := t.Context()
	p := g.started(t, containerSpec("limits", "cat"), "limits")
	update := func(r *pb.LinuxResources) {
		t.Helper()
		if _, err := g.agent.UpdateContainer(ctx, &pb.UpdateContainerRequest{ContainerId: "limits", Resources: r}); err != nil {
			t.Error(err)
		}
	}
	const group = "/sys/fs/cgroup/"
	wantFiles := func(when string, want map[string]string) {
		t.Helper()
		for file, text := range want {
			if out, _ := g.exec(t, "limits", "look", "cat", group+file); strings.TrimSpace(out) != text {
				t.Errorf("%s: %s is %q, want %q", when, file, out, text)
			}
		}
	}
	wantFiles("at first", map[string]string{"memory.max": "104857600", "cpu.max": "max 100000", "pids.max": "max"})
	update(&pb.LinuxResources{
		Memory: &pb.LinuxMemory{Limit: 64 << 20, Reservation: 32 << 20}, CPU: &pb.LinuxCPU{Quota: 50000, Period: 200000, Shares: 512, Cpus: "0", Mems: "0"},
		Pids: &pb.LinuxPids{Limit: 100},
	})
	changed := map[string]string{
		"memory.max": "67108864", "memory.low": "33554432", "cpu.max": "50000 200000", "cpu.weight": "59", "cpuset.cpus": "0", "cpuset.mems": "0", "pids.max": "100",
	}
	wantFiles("changed", changed)
	update(&pb.LinuxResources{Memory: &pb.LinuxMemory{Limit: -1}})
	changed["memory.max"] = "max"
	wantFiles("without a limit of memory", changed)
	_, err := g.agent.UpdateContainer(ctx, &pb.UpdateContainerRequest{ContainerId: "limits", Resources: &pb.LinuxResources{
		Pids: &pb.LinuxPids{Limit: 50}, CPU: &pb.LinuxCPU{Cpus: "4000"},
	}})
	if err == nil {
		t.Error("a processor that is not there was taken")
	}
	wantFiles("after an update that failed", changed)
	update(&pb.LinuxResources{Memory: &pb.LinuxMemory{Limit: 80 << 20}})

	// Beside what the files say before and after.
	files := func() map[string]uint64 {
		out := map[string]uint64{}
		for file, prefix := range map[string]string{"memory.stat": "", "memory.events": "memory.events.", "cpu.stat": "cpu.stat."} {
			text, _ := g.exec(t, "limits", "look", "cat", group+file)
			for line := range strings.Lines(text) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				out[prefix+name], _ = strconv.ParseUint(value, 10, 64)
			}
		}
		return out
	}
	before := files()
	stats := g.stats(t, "limits")
	after := files()
	got := stats.GetCgroupStats().GetMemoryStats().GetStats()
	for key := range before {
		v, there := got[key]
		if !there {
			t.Errorf("%s is missing", key)
		}
		if grows := strings.HasPrefix(key, "cpu.") || strings.HasPrefix(key, "pg"); grows && (v < before[key] || v > after[key]) {
			t.Errorf("%s is %d, and was %d before and %d after", key, v, before[key], after[key])
		}
	}
	cgroup := stats.GetCgroupStats()
	if cgroup.GetCpuStats().GetCpuUsage().GetTotalUsage() != got["cpu.stat.usage_usec"]*1000 || cgroup.GetMemoryStats().GetUsage().GetLimit() != 80<<20 ||
		cgroup.GetPidsStats().GetLimit() != 100 || cgroup.GetPidsStats().GetCurrent() == 0 || got["memory.swap.max"] != math.MaxUint64 && got["memory.swap.max"] != 0 {
		t.Errorf("%v", cgroup)
	}
	for _, key := range []string{"memory.current", "memory.peak", "cpu.pressure.some.avg10", "memory.pressure.full.total", "io.pressure.some.total", "hugetlb.2MB.max"} {
		if _, there := got[key]; !there {
			t.Errorf("%s is missing", key)
		}
	}
	// The container's programs were read from its disks.
	var read uint64
	for _, e := range cgroup.GetBlkioStats().GetIoServiceBytesRecursive() {
		if e.GetOp() == "Read" && e.GetMajor() > 0 {
			read += e.GetValue()
		}
	}
	if read == 0 {
		t.Log("no reads of a disk: everything was cached")
	}
	if n := stats.GetNetworkStats(); len(n) == 0 || n[0].GetName() != "lo" {
		t.Errorf("interfaces: %v", n)
	}
	t.Logf("statistics: %d numbers, %d interfaces, %d sizes of huge pages", len(got), len(stats.GetNetworkStats()), len(cgroup.GetHugetlbStats()))

	if err := g.client.CloseStdin(ctx, p); err != nil {
		t.Error(err)
	}
	if code, err := g.client.WaitProcess(ctx, p); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	if used := g.count(t, "limits", "cpu.stat.usage_usec"); used < got["cpu.stat.usage_usec"] {
		t.Errorf("after its end it used %d µs, %d before", used, got["cpu.stat.usage_usec"])
	}
	if _, err := g.agent.UpdateContainer(ctx, &pb.UpdateContainerRequest{ContainerId: "limits", Resources: &pb.LinuxResources{}}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("update after the end: %v", err)
	}
	g.removed(t, p)
	if _, err := g.agent.StatsContainer(ctx, &pb.StatsContainerRequest{ContainerId: "limits"}); status.Code(err) != codes.NotFound {
		t.Errorf("statistics after the removal: %v", err)
	}

	// A network of its own has its own interfaces, while it is there.
	alone := containerSpec("alone", "cat")
	alone.Linux.Namespaces = append(alone.Linux.Namespaces, &pb.LinuxNamespace{Type: "network"})
	p = g.started(t, alone, "alone")
	if n := g.stats(t, "alone").GetNetworkStats(); len(n) != 1 || n[0].GetName() != "lo" || n[0].GetRxPackets() != 0 {
		t.Errorf("interfaces: %v", n)
	}
	if err := g.client.CloseStdin(ctx, p); err != nil {
		t.Error(err)
	}
	if _, err := g.client.WaitProcess(ctx, p); err != nil {
		t.Error(err)
	}
	if n := g.stats(t, "alone").GetNetworkStats(); len(n) != 0 {
		t.Errorf("interfaces after the end: %v", n)
	}
	g.removed(t, p)
}

func testOOM(t *testing.T, g *guest) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	named := make(chan string, 1)
	await := func() {
		go func() {
			id, err := g.client.GetOOMEvent(ctx)
			if err != nil {
				id = err.Error()
			}
			named <- id
		}()
	}
	await()
	small := func(id string, args ...string) *pb.Spec {
		spec := containerSpec(id, args...)
		spec.Linux.Resources.Memory.Limit = 24 << 20
		return spec
	}
	eat := []string{"eat", strconv.Itoa(64 << 20)}
	p := g.started(t, small("greedy", eat...), "greedy")
	if code, err := g.client.WaitProcess(ctx, p); code != 137 || err != nil {
		t.Errorf("status %d, %v", code, err)
	}
	if id := <-named; id != "greedy" {
		t.Errorf("named %q", id)
	}
	if n := g.count(t, "greedy", "memory.events.oom_kill"); n == 0 {
		t.Error("it is not counted")
	}

	// Nobody waits while it happens, and the event is there all the same once
	// the end of the process is known; a child of the first process counts too.
	q := g.started(t, small("parent", append([]string{"parent"}, eat...)...), "parent")
	if n, err := g.client.ReadStdout(ctx, q, make([]byte, 100)); n == 0 || err != nil {
		t.Error(err)
	}
	r := g.started(t, small("second", eat...), "second")
	if _, err := g.client.WaitProcess(ctx, r); err != nil {
		t.Error(err)
	}
	both := map[string]bool{}
	for range 2 {
		await()
		both[<-named] = true
	}
	if !maps.Equal(both, map[string]bool{"parent": true, "second": true}) {
		t.Errorf("named %v", both)
	}
	// An exec that is killed is the container's event again.
	if _, code := g.exec(t, "parent", "e", eat...); code != 137 {
		t.Errorf("status %d", code)
	}
	await()
	if id := <-named; id != "parent" {
		t.Errorf("named %q", id)
	}
	if n := g.count(t, "parent", "memory.events.oom_kill"); n != 2 {
		t.Errorf("%d were killed", n)
	}
	for _, p := range []agentclient.Process{p, q, r} {
		g.removed(t, p)
	}
	g.idle(t, 200*time.Millisecond) // no event is left
}

func testHooks(t *testing.T, g *guest) {
	ctx := t.Context()
	const shared = storage.Base + "/shared/containers"
	dir := t.TempDir()
	run(t, []string{"CGO_ENABLED=0"}, "go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, "hook"), "./testdata/payload")
	program, err := os.ReadFile(filepath.Join(dir, "hook"))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.client.CopyFile(ctx, agentclient.File{Path: shared + "/hook", Size: int64(len(program)), Mode: 0o755, DirMode: 0o755}, bytes.NewReader(program)); err != nil {
		t.Fatal(err)
	}
	hook := func(path, name string) []*pb.Hook {
		return []*pb.Hook{{Path: path, Args: []string{"hook", "hook", name}}}
	}
	spec := containerSpec("hooks", "cat", "/shared/createRuntime", "/shared/createContainer", "/shared/startContainer", "/proc/sys/kernel/shmmni", "/proc/sys/net/ipv4/ip_unprivileged_port_start")
	spec.Annotations = map[string]string{"an": "annotation"}
	spec.Mounts = append(spec.Mounts, &pb.Mount{Destination: "/shared", Source: shared, Type: "bind", Options: []string{"rbind", "rw"}})
	spec.Hooks = &pb.Hooks{
		CreateRuntime:   hook(shared+"/hook", shared+"/createRuntime"),
		CreateContainer: hook(shared+"/hook", shared+"/createContainer"),
		StartContainer:  hook("/payload", "/shared/startContainer"),
		Poststop:        hook(shared+"/hook", shared+"/poststop"),
	}
	spec.Linux.Sysctl = map[string]string{"kernel.shmmni": "1234", "net.ipv4.ip_unprivileged_port_start": "77"}
	out, stderr, code := g.runContainer(t, "hooks", layers("hooks"), spec)
	if code != 0 {
		t.Fatalf("status %d, %s", code, stderr)
	}
	decoder := json.NewDecoder(strings.NewReader(out))
	for _, want := range []string{"creating", "creating", "created"} {
		var state struct {
			ID, Status  string
			Annotations map[string]string
		}
		if err := decoder.Decode(&state); err != nil || state.ID != "hooks" || state.Status != want || state.Annotations["an"] != "annotation" {
			t.Errorf("a hook was given %+v, %v; want status %s", state, err, want)
		}
	}
	if !strings.HasSuffix(out, "1234\n77\n") {
		t.Errorf("sysctls: %q", out)
	}
	spec = containerSpec("after", "cat", "/shared/poststop")
	spec.Mounts = append(spec.Mounts, &pb.Mount{Destination: "/shared", Source: shared, Type: "bind", Options: []string{"rbind", "ro"}})
	if out, stderr, _ := g.runContainer(t, "after", layers("after"), spec); !strings.Contains(out, `"stopped"`) {
		t.Errorf("after its end: %q, %s", out, stderr)
	}

	spec = containerSpec("failing", "exit", "0")
	spec.Hooks = &pb.Hooks{CreateRuntime: []*pb.Hook{{Path: shared + "/hook", Args: []string{"hook", "exit", "3"}}}}
	err = g.client.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "failing", Storages: layers("failing"), OCI: spec})
	if err == nil || !strings.Contains(err.Error(), "createRuntime hook #0") {
		t.Errorf("a hook that fails: %v", err)
	}
	spec = containerSpec("failing", "exit", "0")
	spec.Linux.Sysctl = map[string]string{"kernel.panic": "1"}
	err = g.client.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "failing", Storages: layers("failing"), OCI: spec})
	if err == nil || !strings.Contains(err.Error(), "kernel.panic") {
		t.Errorf("a sysctl of the whole guest: %v", err)
	}
}

// testSeccomp gives a container a profile, which an agent without seccomp
// refuses instead of running the container without one.
func testSeccomp(t *testing.T, g *guest) {
	ctx := t.Context()
	details, err := g.client.GetGuestDetails(ctx)
	if err != nil {
		t.Fatal(err)
	}
	spec := containerSpec("filter", "tty") // asks for its size first
	spec.Linux.Seccomp = &pb.LinuxSeccomp{
		DefaultAction: "SCMP_ACT_ALLOW", Architectures: []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_X86"},
		Syscalls: []*pb.LinuxSyscall{{Names: []string{"ioctl"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: &pb.LinuxSyscall_Errnoret{Errnoret: 71}}},
	}
	if !details.GetAgentDetails().GetSupportsSeccomp() {
		err := g.client.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "filter", Storages: layers("filter"), OCI: spec})
		if !errors.Is(err, errdefs.ErrNotImplemented) || !strings.Contains(err.Error(), "OCI.Linux.Seccomp") {
			t.Errorf("%v", err)
		}
		t.Log("this agent is built without seccomp")
		return
	}
	for _, privileges := range []bool{true, false} { // the filter is loaded at another point then
		spec.Process.NoNewPrivileges = privileges
		_, stderr, code := g.runContainer(t, "filter", layers("filter"), spec)
		if code != 1 || !strings.Contains(stderr, "protocol error") { // errno 71
			t.Errorf("no_new_privs %v: status %d, %q", privileges, code, stderr)
		}
	}
	spec.Process.Args[1] = "facts"
	spec.Linux.Seccomp.Syscalls[0].Names = []string{"ptrace"}
	p := g.started(t, spec, "filter")
	if out, stderr, code := g.collect(t, p); code != 0 || !strings.Contains(out, "Seccomp: 2\n") {
		t.Errorf("status %d, %s, %s", code, stderr, out)
	}
	g.removed(t, p)
	long := containerSpec("filter", "cat")
	long.Linux.Seccomp = spec.Linux.Seccomp
	p = g.started(t, long, "filter")
	if out, _ := g.exec(t, "filter", "e", "facts"); !strings.Contains(out, "Seccomp: 2\n") {
		t.Errorf("an exec is not filtered: %s", out)
	}
	g.removed(t, p)
}

// testPlug plugs memory into the machine. For processors see
// TestPluggedProcessorsComeOnline.
func testPlug(t *testing.T, g *guest) {
	ctx := t.Context()
	details, err := g.agent.GetGuestDetails(ctx, &pb.GuestDetailsRequest{MemBlockSize: true})
	if err != nil || details.GetMemBlockSizeBytes() != 128<<20 {
		t.Errorf("%v, %v", details, err)
	}
	total := func() int {
		t.Helper()
		out, stderr, code := g.runContainer(t, "plug", layers("plug"), containerSpec("plug", "cat", "/proc/meminfo"))
		if code != 0 {
			t.Fatalf("status %d, %s", code, stderr)
		}
		kib, err := strconv.Atoi(strings.Fields(out)[1])
		if err != nil {
			t.Fatal(err)
		}
		return kib
	}
	before := total()
	// Before the plug: what comes later is to come online by itself.
	if _, err := g.agent.OnlineCPUMem(ctx, &pb.OnlineCPUMemRequest{}); err != nil {
		t.Error(err)
	}
	g.monitor.do(t, "object-add", map[string]any{"qom-type": "memory-backend-memfd", "id": "more", "size": 128 << 20, "share": true})
	g.monitor.do(t, "device_add", map[string]any{"driver": "pc-dimm", "id": "dimm", "memdev": "more"})
	for deadline := time.Now().Add(time.Minute); ; {
		now := total()
		if now-before == 128<<10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d KiB of memory, %d before", now, before)
		}
	}
	if _, err := g.agent.OnlineCPUMem(ctx, &pb.OnlineCPUMemRequest{Wait: true}); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = g.agent.OnlineCPUMem(ctx, &pb.OnlineCPUMemRequest{Wait: true, NbCpus: 1, CpuOnly: true})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "0 of 1") {
		t.Errorf("a processor that does not come: %v", err)
	}
}
