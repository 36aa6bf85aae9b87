package cri

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/image"
)

// podGroup makes the cgroup of a pod. At the end of the test it goes, which it does
// only if nothing is in it.
func (r *runtime) podGroup(t *testing.T, uid string) *harness.PodCgroup {
	t.Helper()
	group, err := r.bed.PodCgroup(uid)
	must(t, err)
	t.Cleanup(func() { must(t, group.Remove()) })
	return group
}

// ungrouped holds that nothing was left in it.
func (p *pod) ungrouped(t *testing.T) {
	t.Helper()
	left, err := p.group.Left()
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// grouped holds that all that the pod consists of on the host is in a cgroup below
// the pod's, in every hierarchy but that of devices.
func (p *pod) grouped(t *testing.T) {
	t.Helper()
	leaf := path.Join(p.group.Path, p.id)
	shims, err := p.bed.Shims()
	must(t, err)
	vms, err := p.bed.VMs()
	must(t, err)
	daemons, err := p.bed.VsockDaemons()
	must(t, err)
	of := map[string]int{}
	for kind, pids := range map[string][]int{"shim": shims, "QEMU": vms, "vsock daemon": daemons} {
		for _, pid := range pids {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			must(t, err)
			if !strings.Contains(string(text), leaf) {
				continue // another pod's
			}
			of[kind]++
			for line := range strings.Lines(string(text)) {
				if part := strings.SplitN(strings.TrimSpace(line), ":", 3); part[2] != leaf && part[1] != "devices" {
					t.Errorf("%s is in %s", kind, line)
				}
			}
		}
	}
	for kind, want := range map[string]int{"shim": 1, "QEMU": 1, "vsock daemon": min(1, len(daemons))} {
		if of[kind] != want {
			t.Errorf("in the pod's cgroup: %d times %s, want %d", of[kind], kind, want)
		}
	}
}

// testShimDeath: a pod whose shim is gone takes its VM and its cgroup with it.
func testShimDeath(t *testing.T, r *runtime, handler string) {
	before, err := r.bed.Shims()
	must(t, err)
	p := r.pod(t, handler, nil)
	c := p.start(t, spec{name: "app", image: image.One, script: forever})
	after, err := r.bed.Shims()
	must(t, err)
	after = slices.DeleteFunc(after, func(pid int) bool { return slices.Contains(before, pid) })
	if len(after) != 1 {
		t.Fatalf("the shims of one pod are %v", after)
	}
	must(t, syscall.Kill(after[0], syscall.SIGKILL))
	c.exit(t)
	until(t, "the pod is not ready", func() (bool, error) {
		return p.state(t) == cri.PodSandboxState_SANDBOX_NOTREADY, nil
	})
	p.remove(t) // holds that the cgroup is empty
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.After)
	defer cancel()
	if left, err := r.bed.Leftovers(ctx); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
