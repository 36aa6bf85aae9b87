package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// infraSpec is that of the pause container of the pod "pod", in short.
const infraSpec = `{"process":{"args":["/pause"],"cwd":"/"},"root":{},"hostname":"name",
	"annotations":{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"pod"},
	"mounts":[{"destination":"/etc/resolv.conf","type":"bind","source":"/does/not/exist","options":["rbind","ro"]}],
	"linux":{"namespaces":[{"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"cgroup"},{"type":"network"}],
		"sysctl":{"net.ipv4.ip_forward":"1"}}}`

// memberSpec is that of a container which shares all that it can.
var memberSpec = fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},
	"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"pod"},
	"mounts":[{"destination":"/dev/shm","type":"bind","source":"/does/not/exist","options":["rbind"]}],
	"linux":{"namespaces":[{"type":"pid","path":"/proc/%[1]d/ns/pid"},{"type":"ipc","path":"/proc/%[1]d/ns/ipc"},
		{"type":"uts","path":"/proc/%[1]d/ns/uts"},{"type":"mount"},{"type":"cgroup"},{"type":"network","path":"/proc/%[1]d/ns/net"}]}}`, fakePid)

func (w *world) runs(t *testing.T, id, spec string) {
	t.Helper()
	if _, err := w.Create(t.Context(), w.request(t, id, spec)); err != nil {
		t.Fatal(err)
	}
	if pid, err := w.Start(t.Context(), id, ""); err != nil || pid != fakePid {
		t.Fatalf("pid %d, %v", pid, err)
	}
}

// pods is a world with the pod "pod", whose pause container runs.
func pods(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, newFakeAgent())
	w.runs(t, "pod", infraSpec)
	return w
}

func (w *world) ends(t *testing.T, id string, status int) {
	t.Helper()
	if exit, err := w.Wait(t.Context(), id, ""); err != nil || exit.Status != status {
		t.Errorf("%s ends with %d, %v, want %d", id, exit.Status, err, status)
	}
	if info, err := w.Delete(t.Context(), id, ""); err != nil || info.Exit.Status != status {
		t.Errorf("delete %s: %d, %v", id, info.Exit.Status, err)
	}
}

func TestThePauseContainerBootsTheVMAndTakesNothingOfIt(t *testing.T) {
	w := pods(t)
	if w.agent.container("pod") != nil || len(w.vm.attached()) != 0 || len(w.agent.copied) != 0 {
		t.Errorf("the guest has something of it: disks %q", w.vm.attached())
	}
	if r := w.agent.sandbox; r.GetHostname() != "name" || len(r.GetStorages()) != 1 || r.GetStorages()[0].GetMountPoint() != guestShm {
		t.Errorf("the guest's sandbox: %v", r)
	}
	if info, err := w.Info("pod", ""); err != nil || info.State != Running || info.Pid != fakePid {
		t.Errorf("%+v, %v", info, err)
	}
	if err := w.Exec(&ExecRequest{ID: "pod", Exec: "e", Process: &pb.Process{}}); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "guest.pause") {
		t.Errorf("exec: %v", err)
	}
	if err := w.Pause(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
	if err := w.Resume(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
	if err := w.Kill(t.Context(), "pod", "", syscall.SIGHUP, false); err != nil {
		t.Error(err)
	}
	if err := w.Kill(t.Context(), "pod", "", syscall.SIGKILL, true); err != nil {
		t.Error(err)
	}
	w.ends(t, "pod", statusKilled)
	want := []string{"create pod", "start pod", "paused pod", "resumed pod", "exit pod/ 137", "delete pod 137"}
	if got := w.events.all(); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if !w.Empty() || w.Pid() != 0 {
		t.Error("the VM outlives its pod")
	}
}

func TestThePauseContainerEndsAsItsProgramDoes(t *testing.T) {
	for sig, status := range map[syscall.Signal]int{syscall.SIGTERM: 0, syscall.SIGINT: 0, syscall.SIGKILL: 137} {
		w := pods(t)
		if err := w.Kill(t.Context(), "pod", "", sig, false); err != nil {
			t.Error(err)
		}
		w.ends(t, "pod", status)
	}
}

func TestThePauseContainerRunsIfItIsToldTo(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	w.config.Guest.Pause = "run"
	spec := strings.ReplaceAll(infraSpec, "/does/not/exist", "/etc/hosts")
	spec = strings.ReplaceAll(spec, `{"type":"uts"},`, "") // as with the network of the host
	w.runs(t, "pod", spec)
	r := w.agent.container("pod")
	if r == nil || !r.GetSandboxPidns() || len(w.vm.attached()) != 2 {
		t.Fatalf("%v", r)
	}
	var kinds []string
	for _, ns := range r.GetOCI().GetLinux().GetNamespaces() {
		kinds = append(kinds, ns.GetType()+ns.GetPath())
	}
	if !slices.Equal(kinds, []string{"mount", "cgroup"}) || w.agent.sandbox.GetHostname() != "name" || r.GetOCI().GetHostname() != "" {
		t.Errorf("namespaces %q, hostname %q", kinds, r.GetOCI().GetHostname())
	}
}

func TestContainersOfAPodHaveInCommonWhatTheySay(t *testing.T) {
	w := pods(t)
	w.runs(t, "a", memberSpec)
	own := strings.ReplaceAll(memberSpec, fmt.Sprintf(`"path":"/proc/%d/ns/pid"`, fakePid), `"path":""`)
	w.runs(t, "b", own)
	for id, want := range map[string][]string{"a": {"mount", "cgroup"}, "b": {"pid", "mount", "cgroup"}} {
		r := w.agent.container(id)
		var kinds []string
		for _, ns := range r.GetOCI().GetLinux().GetNamespaces() {
			kinds = append(kinds, ns.GetType()+ns.GetPath())
		}
		if !slices.Equal(kinds, want) || r.GetSandboxPidns() != (id == "a") {
			t.Errorf("%s: namespaces %q, that of the pod %v", id, kinds, r.GetSandboxPidns())
		}
		if got := r.GetOCI().GetLinux().GetSysctl()["net.ipv4.ip_forward"]; got != "1" {
			t.Errorf("%s: sysctl %q of the pod", id, got)
		}
		if m := r.GetOCI().GetMounts(); len(m) != 1 || m[0].GetSource() != guestShm || m[0].GetType() != "bind" {
			t.Errorf("%s: mounts %v", id, m)
		}
	}
	if w.starts != 1 {
		t.Errorf("%d VMs", w.starts)
	}
}

func TestContainersComeAndGoInThePodsVM(t *testing.T) {
	w := pods(t)
	w.runs(t, "a", memberSpec)
	w.runs(t, "b", memberSpec)
	w.agent.of(t, "a", "").exit(1)
	w.ends(t, "a", 1)
	if info, err := w.Info("b", ""); err != nil || info.State != Running {
		t.Errorf("the other is %s, %v", info.State, err)
	}
	w.agent.of(t, "b", "").exit(0)
	w.ends(t, "b", 0)
	if len(w.vm.attached()) != 0 || w.Pid() != fakePid || w.Empty() {
		t.Errorf("disks %q, pid %d", w.vm.attached(), w.Pid())
	}
	w.runs(t, "c", memberSpec)
	if w.starts != 1 {
		t.Errorf("%d VMs", w.starts)
	}
}

func TestTheVMEndsWithThePauseContainer(t *testing.T) {
	w := pods(t)
	w.runs(t, "a", memberSpec)
	if err := w.Kill(t.Context(), "pod", "", syscall.SIGKILL, false); err != nil {
		t.Error(err)
	}
	w.ends(t, "pod", statusKilled)
	w.events.await(t, "exit a/ 137")
	if _, err := w.Create(t.Context(), w.request(t, "late", memberSpec)); err == nil {
		t.Error("a container came into a pod that is gone")
	}
	if w.Empty() {
		t.Error("a container that was not deleted is forgotten")
	}
	w.ends(t, "a", statusKilled)
	if !w.Empty() {
		t.Error("something is left")
	}
}

func TestContainersOfOtherPodsAreRefused(t *testing.T) {
	other := strings.ReplaceAll(memberSpec, `"sandbox-id":"pod"`, `"sandbox-id":"other"`)
	other = strings.ReplaceAll(other, `cri.sandbox-id":"pod"`, `cri.sandbox-id":"other"`)
	w := newWorld(t, newFakeAgent())
	if _, err := w.Create(t.Context(), w.request(t, "a", other)); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("without a pod: %v", err)
	}
	w = pods(t)
	if _, err := w.Create(t.Context(), w.request(t, "a", other)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("another pod's: %v", err)
	}
	if _, err := w.Create(t.Context(), w.request(t, "second", infraSpec)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another pause container: %v", err)
	}
}

// heldPod is a world with a pod of the Sandbox API.
func heldPod(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, newFakeAgent())
	bundle := w.request(t, "pod", "").Bundle
	err := w.CreatePod(&PodRequest{
		ID: "pod", Bundle: bundle, Hostname: "name", Config: w.config, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"},
		Mounts: []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: "/etc/hosts", Options: []string{"rbind"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestAnAnnotationThatIsNotAllowedFailsThePod(t *testing.T) {
	const name = "io.erofsvm.hypervisor.vcpus"
	w := newWorld(t, newFakeAgent())
	err := w.CreatePod(&PodRequest{
		ID: "pod", Bundle: w.request(t, "pod", "").Bundle, Config: w.config, Annotations: map[string]string{name: "1"},
	})
	if !errdefs.IsPermissionDenied(err) && !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
		t.Errorf("%v", err)
	}
	if !w.Empty() || w.Pid() != 0 {
		t.Error("a pod is there")
	}
}

func TestThePodIsThereBetweenStartAndStop(t *testing.T) {
	w := heldPod(t)
	if info, err := w.Sandbox.Pod("pod"); err != nil || info.Ready || info.Created.IsZero() {
		t.Errorf("before: %+v, %v", info, err)
	}
	if info, err := w.StartPod(t.Context(), "pod"); err != nil || !info.Ready || info.Pid != fakePid {
		t.Fatalf("%+v, %v", info, err)
	}
	w.runs(t, "a", memberSpec)
	if r := w.agent.container("a"); len(r.GetOCI().GetMounts()) != 2 || r.GetOCI().GetLinux().GetSysctl()["net.ipv4.ip_forward"] != "1" {
		t.Errorf("what the pod has for its containers: %v", r)
	}
	w.agent.of(t, "a", "").exit(0)
	w.ends(t, "a", 0)
	if w.Empty() || w.Pid() != fakePid {
		t.Error("the pod ends with its last container")
	}
	w.runs(t, "b", memberSpec)
	for range 2 {
		if err := w.StopPod(t.Context(), "pod"); err != nil {
			t.Error(err)
		}
	}
	if exit, err := w.WaitPod(t.Context(), "pod"); err != nil || exit.Status != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
	if info, err := w.Sandbox.Pod("pod"); err != nil || info.Ready || !info.Ended || info.Pid != fakePid {
		t.Errorf("afterwards: %+v, %v", info, err)
	}
	w.ends(t, "b", statusKilled)
	if w.Empty() {
		t.Error("the pod was not removed yet")
	}
	if err := w.RemovePod(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
	if _, err := w.Sandbox.Pod("pod"); !errdefs.IsNotFound(err) || !w.Empty() {
		t.Errorf("it is still there: %v", err)
	}
}

func TestAPodWhoseVMDiesIsToldOf(t *testing.T) {
	w := heldPod(t)
	if _, err := w.StartPod(t.Context(), "pod"); err != nil {
		t.Fatal(err)
	}
	w.runs(t, "a", memberSpec)
	w.vm.end(errors.New("crashed"))
	if exit, err := w.WaitPod(t.Context(), "pod"); err != nil || exit.Status != statusKilled {
		t.Errorf("%+v, %v", exit, err)
	}
	if info, err := w.Sandbox.Pod("pod"); err != nil || info.Ready {
		t.Errorf("%+v, %v", info, err)
	}
	w.ends(t, "a", statusKilled)
	if _, err := w.Create(t.Context(), w.request(t, "b", memberSpec)); err == nil {
		t.Error("a container came into a VM that is gone")
	}
}

func TestAPodThatDoesNotBootHasEnded(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	w.agent.failing("CreateSandbox", errors.New("no room"))
	if err := w.CreatePod(&PodRequest{ID: "pod", Bundle: w.request(t, "pod", "").Bundle, Config: w.config}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.StartPod(t.Context(), "pod"); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("%v", err)
	}
	if _, err := w.WaitPod(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
	if err := w.RemovePod(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
}

func TestAPodThatIsStoppedWhileAContainerIsCreatedIsStopped(t *testing.T) {
	w := heldPod(t)
	if _, err := w.StartPod(t.Context(), "pod"); err != nil {
		t.Fatal(err)
	}
	held, release := w.agent.holding("CreateContainer")
	defer release()
	created := make(chan error, 1)
	go func() {
		_, err := w.Create(context.Background(), w.request(t, "a", memberSpec))
		created <- err
	}()
	<-held
	if err := w.StopPod(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
	if err := <-created; err == nil {
		t.Error("the container was created")
	}
}
