package main

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
)

// podMemory is what the containers of the pod share as /dev/shm.
const podMemory = storage.Base + "/sandbox/shm"

// podSpec is that of a container which has with the others of its pod all in
// common that it can have.
func podSpec(id string, args ...string) *pb.Spec {
	spec := containerSpec(id, args...)
	spec.Hostname = ""
	spec.Linux.Namespaces = []*pb.LinuxNamespace{{Type: "mount"}, {Type: "cgroup"}}
	for _, m := range spec.Mounts {
		if m.Destination == "/dev/shm" {
			m.Type, m.Source, m.Options = "bind", podMemory, []string{"rbind", "nosuid", "noexec", "nodev"}
		}
	}
	return spec
}

// inPod creates and starts a container of the pod, from the disk that all of them
// can read.
func (g *guest) inPod(t *testing.T, id string, args ...string) agentclient.Process {
	t.Helper()
	err := g.client.CreateContainer(t.Context(), &pb.CreateContainerRequest{
		ContainerId: id, Storages: []*pb.Storage{lowerStorage(id, "08/02")}, OCI: podSpec(id, args...), SandboxPidns: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.client.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return agentclient.Process{Container: id}
}

func testPod(t *testing.T, g *guest) {
	first := g.inPod(t, "pod-first", "wait")
	second := g.inPod(t, "pod-second", "cat")
	if out, code := g.exec(t, "pod-first", "write", "write", "/dev/shm/said", "in memory"); code != 0 {
		t.Errorf("%d, %s", code, out)
	}
	if out, code := g.exec(t, "pod-second", "read", "cat", "/dev/shm/said"); out != "in memory" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	if out, _ := g.exec(t, "pod-second", "facts", "facts"); !strings.Contains(out, "hostname: pod\n") || strings.Contains(out, "pid: 1\n") {
		t.Errorf("facts:\n%s", out)
	}
	out, _ := g.exec(t, "pod-second", "processes", "processes")
	for _, want := range []string{"1: /proc/self/exe pod-init\n", ": /payload wait\n", ": /payload cat\n", "root of the first: open /proc/1/root: permission denied\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}

	// A container that ends takes what it has left behind with it, and nothing of
	// the others.
	third := g.inPod(t, "pod-third", "orphan")
	if out, _, code := g.collect(t, third); out == "" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	g.removed(t, third)
	if out, _ := g.exec(t, "pod-second", "after", "processes"); strings.Count(out, "/payload wait") != 1 {
		t.Errorf("left behind:\n%s", out)
	}
	if err := g.client.SignalProcess(t.Context(), first, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if code := g.removed(t, first); code != 137 {
		t.Errorf("killed: %d", code)
	}
	if out, code := g.exec(t, "pod-second", "still", "echo", "there"); out != "there\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	g.removed(t, second)

	spec := podSpec("both", "wait")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, &pb.LinuxNamespace{Type: "pid"})
	err := g.client.CreateContainer(t.Context(), &pb.CreateContainerRequest{
		ContainerId: "both", Storages: []*pb.Storage{lowerStorage("both", "08/02")}, OCI: spec, SandboxPidns: true,
	})
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "pid namespace") {
		t.Errorf("two pid namespaces: %v", err)
	}
}
