package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/runtime/sizing"
)

// growing is a world whose VM boots with one processor and 512 MiB, and can have
// 4 and 4096.
func growing(t *testing.T) *world {
	t.Helper()
	agent := newFakeAgent()
	agent.block = hypervisor.MemoryBlockMiB << 20
	w := newWorld(t, agent)
	w.vm.limits = sizing.Size{VCPUs: 4, MemoryMiB: 4096}
	return w
}

// limited is a spec whose container may use so many processors and MiB, each 0 for
// as much as there is.
func limited(vcpus, mib int) string {
	return fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{"resources":{"cpu":{"quota":%d,"period":100000},"memory":{"limit":%d}}}}`,
		vcpus*100_000, mib<<20)
}

// create is Create, and returns the calls that it made about the size.
func (w *world) create(t *testing.T, id, spec string) []string {
	t.Helper()
	before := len(w.agent.made())
	if _, err := w.Create(t.Context(), w.request(t, id, spec)); err != nil {
		t.Fatal(err)
	}
	return w.sizeCalls(before)
}

func (w *world) sizeCalls(from int) []string {
	return slices.DeleteFunc(w.agent.made()[from:], func(call string) bool {
		return !slices.ContainsFunc([]string{"Add", "Online", "CreateContainer", "UpdateContainer"},
			func(name string) bool { return strings.HasPrefix(call, name) })
	})
}

func wantCalls(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestTheVMGrowsWithTheSumOfItsContainersAndBeforeEachOfThem(t *testing.T) {
	w := growing(t)
	wantCalls(t, "without limits", w.create(t, "a", ""), "CreateContainer a")
	wantCalls(t, "within what there is", w.create(t, "b", limited(1, 128)), "CreateContainer b")
	wantCalls(t, "more processors", w.create(t, "c", limited(1, 0)), "AddCPUs 2", "OnlineCPUMem 1 processors", "CreateContainer c")
	wantCalls(t, "more memory", w.create(t, "d", limited(0, 512)), "AddMemory 896", "OnlineCPUMem 0 all", "CreateContainer d")
	wantCalls(t, "more of both than there can be", w.create(t, "e", limited(9, 9000)),
		"AddMemory 4096", "AddCPUs 4", "OnlineCPUMem 2 all", "CreateContainer e")
	wantCalls(t, "and no more", w.create(t, "f", limited(1, 128)), "CreateContainer f")
}

func TestContainersThatHaveEndedAskForNothing(t *testing.T) {
	w := growing(t)
	w.create(t, "stays", "")
	w.create(t, "first", limited(2, 0))
	if _, err := w.Start(t.Context(), "first", ""); err != nil {
		t.Fatal(err)
	}
	w.agent.of(t, "first", "").exit(0)
	w.events.await(t, "exit first/ 0")
	wantCalls(t, "after one that has ended", w.create(t, "second", limited(2, 0)), "CreateContainer second")
	if _, err := w.Delete(t.Context(), "first", ""); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, "beside one that runs", w.create(t, "third", limited(1, 0)), "AddCPUs 3", "OnlineCPUMem 1 processors", "CreateContainer third")
}

func TestAVMThatCannotGrowKeepsItsSizeAndTakesTheContainer(t *testing.T) {
	for name, change := range map[string]func(*world){
		"a hypervisor that cannot":       func(w *world) { w.vm.limits = sizing.Size{} },
		"none that it may":               func(w *world) { w.vm.limits = sizing.Size{VCPUs: 1, MemoryMiB: 512} },
		"a kernel that takes no memory":  func(w *world) { w.agent.block, w.vm.limits.VCPUs = 0, 1 },
		"a kernel with blocks too large": func(w *world) { w.agent.block, w.vm.limits.VCPUs = 2<<30, 1 },
	} {
		w := growing(t)
		change(w)
		wantCalls(t, name, w.create(t, "c", limited(3, 2048)), "CreateContainer c")
	}
}

func TestAFailureToGrowIsNotOneOfTheContainer(t *testing.T) {
	for _, method := range []string{"AddCPUs", "AddMemory", "OnlineCPUMem"} {
		w := growing(t)
		w.agent.failing(method, errors.New("not now"))
		calls := w.create(t, "c", limited(3, 2048))
		if calls[len(calls)-1] != "CreateContainer c" || !slices.Contains(calls, "AddCPUs 3") || !slices.Contains(calls, "AddMemory 2304") {
			t.Errorf("%s fails: %q", method, calls)
		}
	}
}

func TestWhatDidNotComeIsAskedForAgain(t *testing.T) {
	w := growing(t)
	w.create(t, "stays", "")
	w.agent.failing("AddMemory", errors.New("not now"))
	w.agent.failing("AddCPUs", errors.New("not now"))
	wantCalls(t, "all but one processor fails", w.create(t, "a", limited(3, 600)), "AddMemory 768", "AddCPUs 3", "OnlineCPUMem 1 processors", "CreateContainer a")
	w.agent.failing("AddMemory", nil)
	w.agent.failing("AddCPUs", nil)
	wantCalls(t, "the next", w.create(t, "b", ""), "AddMemory 768", "AddCPUs 3", "OnlineCPUMem 1 all", "CreateContainer b")
	wantCalls(t, "then", w.create(t, "c", ""), "CreateContainer c")
}

func TestAnUpdateGrowsTheVMFirst(t *testing.T) {
	w := growing(t)
	w.create(t, "c", limited(1, 128))
	update := func(cpu *pb.LinuxCPU, mib int64) ([]string, error) {
		t.Helper()
		before := len(w.agent.made())
		err := w.Update(t.Context(), "c", &pb.LinuxResources{CPU: cpu, Memory: &pb.LinuxMemory{Limit: mib << 20}})
		return w.sizeCalls(before), err
	}
	calls, err := update(nil, 1024)
	wantCalls(t, fmt.Sprint("memory: ", err), calls, "AddMemory 1280", "OnlineCPUMem 0 all", "UpdateContainer c")
	calls, err = update(&pb.LinuxCPU{Quota: 200_000}, 0)
	wantCalls(t, fmt.Sprint("a quota whose period stays: ", err), calls, "AddCPUs 2", "OnlineCPUMem 1 processors", "UpdateContainer c")
	calls, err = update(&pb.LinuxCPU{Quota: -1}, 64)
	wantCalls(t, fmt.Sprint("less: ", err), calls, "UpdateContainer c")

	w.agent.failing("AddMemory", errors.New("no memory"))
	calls, err = update(nil, 2048)
	wantCalls(t, "memory that does not come", calls, "AddMemory 2304")
	if err == nil || !strings.Contains(err.Error(), "update container c") || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("memory that does not come: %v", err)
	}
	w.agent.failing("AddMemory", nil)
	wantCalls(t, "limits that were refused count no more", w.create(t, "d", limited(0, 640)), "CreateContainer d")
	w.agent.failing("UpdateContainer", errors.New("no update"))
	if _, err = update(nil, 2048); err == nil {
		t.Error("an update that the guest refuses")
	}
	wantCalls(t, "nor those that the guest refused", w.create(t, "e", limited(0, 1024)), "CreateContainer e")
}

// Two containers that come at once are both in the sum, whoever is first.
func TestOneCallGrowsTheVMAtATime(t *testing.T) {
	w := growing(t)
	w.create(t, "stays", "")
	held, release := w.agent.holding("AddCPUs")
	done := make(chan error, 2)
	requests := []*CreateRequest{w.request(t, "a", limited(2, 0)), w.request(t, "b", limited(1, 0))}
	go func() {
		_, err := w.Create(context.Background(), requests[0])
		done <- err
	}()
	<-held
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.grow(ctx, w.machine); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait for the turn: %v", err)
	}
	go func() {
		_, err := w.Create(context.Background(), requests[1])
		done <- err
	}()
	release()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := w.machine.size.now.VCPUs; got != 3 {
		t.Errorf("%d processors", got)
	}
}

func TestWhatNobodySetsIsWhatTheHostHas(t *testing.T) {
	host := sizing.Size{VCPUs: 64, MemoryMiB: 1 << 20}
	for _, tc := range []struct {
		name             string
		vcpus, mib       int
		maxVCPUs, maxMiB int
		host, want       sizing.Size
	}{
		{"a large host", 1, 512, 0, 0, host, sizing.Size{VCPUs: 16, MemoryMiB: 256 << 10}},
		{"a small host", 1, 512, 0, 0, sizing.Size{VCPUs: 2, MemoryMiB: 4000}, sizing.Size{VCPUs: 2, MemoryMiB: 4000}},
		{"a VM larger than the host", 4, 8192, 0, 0, sizing.Size{VCPUs: 2, MemoryMiB: 4000}, sizing.Size{VCPUs: 4, MemoryMiB: 8192}},
		{"what is set", 1, 512, 32, 1 << 20, host, sizing.Size{VCPUs: 32, MemoryMiB: 1 << 20}},
		{"no more than at first", 2, 512, 2, 512, host, sizing.Size{VCPUs: 2, MemoryMiB: 512}},
	} {
		h := configs.Hypervisor{VCPUs: tc.vcpus, MemoryMiB: tc.mib, MaxVCPUs: tc.maxVCPUs, MaxMemoryMiB: tc.maxMiB}
		if got := most(h, tc.host); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
	if host := hostSize(); host.VCPUs < 1 || host.MemoryMiB < 256 {
		t.Errorf("this host: %+v", host)
	}
}

func TestTheVMIsToldWhatItCanBecome(t *testing.T) {
	w := growing(t)
	w.config.Hypervisor.MaxVCPUs, w.config.Hypervisor.MaxMemoryMiB = 3, 768
	start := w.start
	w.start = func(ctx context.Context, spec qemu.Spec) (bootedVM, error) {
		if spec.MaxVCPUs != 3 || spec.MaxMemoryMiB != 768 {
			t.Errorf("%d processors and %d MiB", spec.MaxVCPUs, spec.MaxMemoryMiB)
		}
		return start(ctx, spec)
	}
	w.create(t, "c", "")
}
