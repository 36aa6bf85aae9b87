package faults

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/cni"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// TestTheShimIsKilled: SIGKILL leaves it no time for anything. The VM is gone
// all the same, containerd learns of the exit, and what lay on the host is
// removed by `delete`, in the pod's network namespace too: unlike a tap, a
// macvtap does not go with those who have it open.
func TestTheShimIsKilled(t *testing.T) {
	for _, release := range harness.Releases {
		t.Run(release, func(t *testing.T) {
			bed := e2etest.Release(t, release)
			image := bed.Image(t, "two", harness.Snapshotter)
			pod, config := podWithMacvtap(t, bed)
			c := bed.Start(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", "ip addr; echo up; sleep 1000"}, Config: config,
				Opts: []oci.SpecOpts{oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: pod.Path()})}})
			c.Stdout.WaitFor(t, "up")
			if names, _, err := pod.Links(); err != nil || !slices.ContainsFunc(names, isOurs) || !strings.Contains(c.Stdout.String(), "10.88.9.") {
				t.Errorf("interfaces %q, %v; in the guest:\n%s", names, err, c.Stdout)
			}
			vm := int(c.Task.Pid())
			events := bed.Events(t, c.ID)
			killShim(t, bed)
			begun := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), e2etest.After)
			defer cancel()
			gone, err := harness.WaitExit(ctx, vm)
			if err != nil {
				t.Fatal(err)
			}
			if !gone {
				t.Errorf("the VM, pid %d, still runs %v after its shim was killed", vm, e2etest.After)
			}
			t.Logf("the VM was gone %v after its shim was killed", time.Since(begun).Round(time.Millisecond))
			// The connection on which the test waits breaks with the shim. What
			// containerd tells everybody comes when `delete` has run.
			if got := events.Until(t, "/tasks/delete"); !slices.Equal(got, []string{"/tasks/exit", "/tasks/delete"}) {
				t.Errorf("events %v", got)
			}
			if names, filters, err := pod.Links(); err != nil || slices.ContainsFunc(names, isOurs) || len(filters) > 0 {
				t.Errorf("left in the network namespace: %q, %q, %v", names, filters, err)
			}
		})
	}
}

func isOurs(name string) bool { return strings.HasPrefix(name, "erofsvm") }

// podWithMacvtap is a pod with a network, and a configuration by which it gets
// into a guest.
func podWithMacvtap(t *testing.T, bed *e2etest.Bed) (pod *cni.Pod, config string) {
	t.Helper()
	node, err := cni.NewNode(bed.Tree, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if pod, err = node.NewPod("pod"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), e2etest.Step)
		defer cancel()
		if err := errors.Join(pod.Close(ctx), node.Close()); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Step)
	defer cancel()
	network := cni.Network{Bridge: "pods", MTU: 1450, Default: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.9.0/24")}}
	if _, err := pod.Add(ctx, "eth0", network, nil); err != nil {
		t.Fatal(err)
	}
	config = filepath.Join(t.TempDir(), "shim.toml")
	if err := bed.ShimConfig().Set("network", "model", "macvtap").Write(config); err != nil {
		t.Fatal(err)
	}
	return pod, config
}

// TestTheShimIsKilledWhileTheGuestBoots: the create fails, nothing is left.
func TestTheShimIsKilledWhileTheGuestBoots(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "two", harness.Snapshotter)
	failed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
		defer cancel()
		failed <- bed.Ctr(ctx, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", bed.ShimConfigPath(),
			"--snapshotter", harness.Snapshotter, image, "boots", "true").Run()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	if err := bed.WaitForSandbox(ctx); err != nil {
		t.Fatal(err)
	}
	killShim(t, bed)
	if err := <-failed; err == nil {
		t.Error("ctr run succeeded")
	}
	if err := bed.RemoveContainers(ctx); err != nil {
		t.Error(err)
	}
}

// TestAClientThatGoesAwayDuringCreate: containerd undoes the create, and no shim
// stays that nobody knows.
func TestAClientThatGoesAwayDuringCreate(t *testing.T) {
	for _, release := range harness.Releases {
		t.Run(release, func(t *testing.T) {
			bed := e2etest.Release(t, release)
			image := bed.Image(t, "two", harness.Snapshotter)
			ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
			defer cancel()
			ctr := bed.Ctr(ctx, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", bed.ShimConfigPath(),
				"--snapshotter", harness.Snapshotter, image, "abandoned", "true")
			if err := ctr.Start(); err != nil {
				t.Fatal(err)
			}
			if err := bed.WaitForSandbox(ctx); err != nil {
				t.Fatal(err)
			}
			if err := ctr.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = ctr.Wait() // it was killed
			if err := bed.RemoveContainers(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// wantTaskOrNone fails unless containerd has the task or knows that it has none.
func wantTaskOrNone(ctx context.Context, t *testing.T, bed *e2etest.Bed, id string) {
	t.Helper()
	task, err := bed.Client().TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	// The bare service answers with a status of gRPC.
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("the task in the next containerd: %v", err)
	}
	t.Logf("the task in the next containerd: %v, pid %d, %v", task.GetProcess().GetStatus(), task.GetProcess().GetPid(), err)
}

// TestContainerdIsKilledWhileAContainerIsCreated: the next containerd has the task
// and can remove it, or nothing of it is left.
func TestContainerdIsKilledWhileAContainerIsCreated(t *testing.T) {
	for _, release := range harness.Releases {
		t.Run(release, func(t *testing.T) {
			bed := e2etest.Own(t, harness.Options{Release: release})
			image := bed.Image(t, "one", harness.Snapshotter)
			ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Boot)
			defer cancel()
			ctr := bed.Ctr(ctx, "run", "--detach", "--runtime", harness.Runtime, "--runtime-config-path", bed.ShimConfigPath(),
				"--snapshotter", harness.Snapshotter, image, "created", "true")
			if err := ctr.Start(); err != nil {
				t.Fatal(err)
			}
			if err := bed.WaitForSandbox(ctx); err != nil {
				t.Fatal(err)
			}
			if err := bed.Crash(ctx); err != nil {
				t.Fatal(err)
			}
			if err := ctr.Wait(); err == nil {
				t.Error("ctr run succeeded with a containerd that was killed meanwhile")
			}
			wantTaskOrNone(ctx, t, bed, "created")
			if err := bed.RemoveContainers(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestContainerdIsKilledWhileAContainerIsDeleted: what the guest has yet to write is
// on its way to the disk when containerd goes. The next one still has the task, or
// nothing of it is left.
func TestContainerdIsKilledWhileAContainerIsDeleted(t *testing.T) {
	for _, release := range harness.Releases {
		t.Run(release, func(t *testing.T) {
			bed := e2etest.Own(t, harness.Options{Release: release})
			c := bed.Start(t, e2etest.Spec{Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sh", "-c",
				"sync; dd if=/dev/zero of=/much bs=1M count=32; echo written"}})
			if code := c.WaitExit(t); code != 0 {
				t.Fatalf("code %d: %s", code, c.Stderr)
			}
			images, err := filepath.Glob(filepath.Join(bed.Dir(), "root", "*.snapshotter.v1.erofs", "snapshots", "*", "rwlayer.img"))
			if err != nil || len(images) != 1 {
				t.Fatalf("writable layers %q, %v, want one", images, err)
			}
			ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Boot)
			defer cancel()
			deleted := make(chan error, 1)
			if err := harness.DuringWrites(ctx, images[0], func() {
				go func() {
					_, err := c.Task.Delete(ctx)
					deleted <- err
				}()
			}); err != nil {
				t.Fatal(err)
			}
			if err := bed.Crash(ctx); err != nil {
				t.Fatal(err)
			}
			t.Logf("the deletion: %v", <-deleted)
			wantTaskOrNone(ctx, t, bed, c.ID)
			c.Adopt(nil, nil) // their client is gone
			if err := bed.RemoveContainers(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTheVMIsKilled: its death ends the container at once, with an exit event
// and everything gone, however it came about.
func TestTheVMIsKilled(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "two", harness.Snapshotter)
	c := bed.Start(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", "echo up; sleep 1000"}})
	c.Stdout.WaitFor(t, "up")
	if err := syscall.Kill(int(c.Task.Pid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if code := c.WaitExit(t); code != 137 {
		t.Errorf("code %d, want 137", code)
	}
	t.Logf("the exit came %v after the VM was killed", time.Since(begun).Round(time.Millisecond))
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
	defer cancel()
	if err := c.Task.Kill(ctx, syscall.SIGKILL); !errdefs.IsNotFound(err) {
		t.Errorf("kill after the VM has gone: %v, want NotFound", err)
	}
	c.Delete(t)
}

// killShim kills the only shim that runs.
func killShim(t *testing.T, bed *e2etest.Bed) {
	t.Helper()
	shims, err := bed.Shims()
	if err != nil {
		t.Fatal(err)
	}
	if len(shims) != 1 {
		t.Fatalf("shims %v, want one", shims)
	}
	if err := syscall.Kill(shims[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
