package cri

import (
	"context"
	"slices"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/image"
)

// testVMDeath: a pod whose VM is gone is not ready, and its containers have
// ended.
func testVMDeath(t *testing.T, r *runtime, handler string) {
	before, err := r.bed.VMs()
	if err != nil {
		t.Fatal(err)
	}
	p := r.pod(t, handler, nil)
	c := p.start(t, spec{name: "app", image: image.One, script: forever})
	after, err := r.bed.VMs()
	if err != nil {
		t.Fatal(err)
	}
	after = slices.DeleteFunc(after, func(pid int) bool { return slices.Contains(before, pid) })
	if len(after) != 1 {
		t.Fatalf("the VMs of one pod are %v", after)
	}
	if err := syscall.Kill(after[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := c.exit(t); code != 137 {
		t.Errorf("the container ends with %d", code)
	}
	// The CRI follows an event of the shim's.
	until(t, "the pod is not ready", func() (bool, error) {
		return p.state(t) == cri.PodSandboxState_SANDBOX_NOTREADY, nil
	})
	if _, err := p.create(t, spec{name: "late", image: image.One, script: forever}); err == nil {
		t.Error("a container was created in a pod that is not ready")
	}
	p.remove(t)
}

// testRestart: pods outlive containerd.
func testRestart(t *testing.T, r *runtime, handler string) {
	p := r.pod(t, handler, nil)
	c := p.start(t, spec{name: "app", image: image.One, script: forever})
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	if err := r.bed.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	r.connect(t)
	if s := p.state(t); s != cri.PodSandboxState_SANDBOX_READY {
		t.Fatalf("afterwards the pod is %v", s)
	}
	if out := c.sh(t, "echo there"); out != "there\n" {
		t.Errorf("afterwards the container says %q", out)
	}
	second := p.start(t, spec{name: "second", image: image.Two, script: forever})
	second.sh(t, "touch /tmp/die")
	if code := second.exit(t); code != 3 {
		t.Errorf("a new container ends with %d", code)
	}
	p.remove(t)
}
