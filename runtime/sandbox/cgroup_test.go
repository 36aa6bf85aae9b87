package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/runtime/hostgroup"
	"github.com/erofsvm/erofsvm/test/need"
)

// hostCgroup is the name of a cgroup that can be made here. Its parents are removed at
// the end of the test, if it is gone by then.
func hostCgroup(t *testing.T) string {
	t.Helper()
	need.Root(t, "to make cgroups")
	parent := fmt.Sprintf("/erofsvm-test-%d", os.Getpid())
	t.Cleanup(func() {
		if err := hostgroup.Remove(context.WithoutCancel(t.Context()), parent); err != nil {
			t.Error(err)
		}
	})
	return path.Join(parent, "pod")
}

// inCgroup says whether this process is in a cgroup of the name.
func inCgroup(t *testing.T, name string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), ":"+name+"\n")
}

func TestTheSandboxIsInTheCgroupOfItsFirstContainer(t *testing.T) {
	w, name := newWorld(t, newFakeAgent()), hostCgroup(t)
	spec := fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{"cgroupsPath":%q}}`, name)
	w.runs(t, "c", spec)
	if !inCgroup(t, name) {
		t.Error("it is not")
	}
	if used, err := w.PodMetrics(t.Context()); err != nil || used.GetPids().GetCurrent() == 0 || used.GetCPU() == nil {
		t.Errorf("what it uses: %v, %v", used, err)
	}
	w.agent.of(t, "c", "").exit(0)
	w.ends(t, "c", 0)
	if inCgroup(t, name) {
		t.Error("it is there afterwards")
	}
	if _, err := hostgroup.New(name); err != nil {
		t.Error(err)
	}
}

func TestAPodOfTheSandboxAPIHasACgroup(t *testing.T) {
	w, name := newWorld(t, newFakeAgent()), hostCgroup(t)
	err := w.CreatePod(&PodRequest{ID: "pod", Bundle: w.request(t, "pod", "").Bundle, Config: w.config, Cgroup: name})
	if err == nil {
		_, err = w.StartPod(t.Context(), "pod")
	}
	if err != nil || !inCgroup(t, name) {
		t.Errorf("it is not there: %v", err)
	}
	if err := w.StopPod(t.Context(), "pod"); err != nil || inCgroup(t, name) {
		t.Errorf("it is there afterwards: %v", err)
	}
}

func TestTheSandboxStaysWhereItIsIfItIsToldTo(t *testing.T) {
	w, name := newWorld(t, newFakeAgent()), hostCgroup(t)
	w.config.Host.Cgroup = configs.CgroupInherit
	w.runs(t, "c", fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{"cgroupsPath":%q}}`, name))
	if inCgroup(t, name) {
		t.Error("it does not")
	}
}

// TestACgroupOfOthersFailsTheSandbox: the error says what to change, nothing has
// started, and the others stay.
func TestACgroupOfOthersFailsTheSandbox(t *testing.T) {
	w, name := newWorld(t, newFakeAgent()), hostCgroup(t)
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	theirs, err := hostgroup.New(name)
	if err == nil {
		err = theirs.Enter(t.Context(), other.Process.Pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	spec := fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{"cgroupsPath":%q}}`, name)
	_, err = w.Create(t.Context(), w.request(t, "c", spec))
	if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "host.cgroup") || !strings.Contains(err.Error(), name) || w.starts != 0 {
		t.Errorf("%v, %d VMs started", err, w.starts)
	}
	err = errors.Join(other.Process.Kill(), theirs.Close(t.Context()))
	_ = other.Wait()
	if err != nil {
		t.Error(err)
	}
}

func TestCleanupRemovesTheCgroup(t *testing.T) {
	name, bundle := hostCgroup(t), t.TempDir()
	gone := exec.Command("sleep", "60")
	if err := gone.Start(); err != nil {
		t.Fatal(err)
	}
	g, err := hostgroup.New(name)
	if err == nil {
		err = errors.Join(g.Enter(t.Context(), gone.Process.Pid), gone.Process.Kill())
	}
	_ = gone.Wait()
	if err = errors.Join(err, writeRecord(bundle, record{Cgroup: name})); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := Cleanup(t.Context(), bundle); err != nil {
			t.Fatal(err)
		}
	}
	// Its parent goes only if it is gone.
}
