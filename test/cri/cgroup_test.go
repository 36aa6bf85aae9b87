package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/image"
)

// podGroup is the path of the cgroup that a kubelet makes for a pod, in all
// hierarchies of the host.
type podGroup string

// podGroup makes it. At the end of the test it goes, which it does only if nothing
// is in it.
func (r *runtime) podGroup(t *testing.T, uid string) podGroup {
	t.Helper()
	group := podGroup(path.Join(r.bed.Cgroup(), "kubepods", "pod"+uid))
	for _, dir := range group.dirs(t) {
		must(t, os.MkdirAll(dir, 0o755))
		// A cpuset takes no process before it has processors and memory.
		for _, up := range []string{filepath.Dir(filepath.Dir(dir)), filepath.Dir(dir), dir} {
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				text, err := os.ReadFile(filepath.Join(filepath.Dir(up), file))
				if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(text)) == "" {
					continue
				}
				must(t, errors.Join(err, os.WriteFile(filepath.Join(up, file), text, 0)))
			}
		}
	}
	t.Cleanup(func() {
		for _, dir := range group.dirs(t) {
			must(t, os.Remove(dir))
			for _, up := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
				_ = os.Remove(up) // with its last pod; the bed's own one stays
			}
		}
	})
	return group
}

func (g podGroup) dirs(t *testing.T) []string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	must(t, err)
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, filepath.Join(m.Mountpoint, string(g)))
	}
	return dirs
}

// empty holds that nothing was left in it.
func (g podGroup) empty(t *testing.T) {
	t.Helper()
	for _, dir := range g.dirs(t) {
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			if e.IsDir() {
				t.Errorf("left: %s", filepath.Join(dir, e.Name()))
			}
		}
		pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if must(t, err); len(pids) > 0 {
			t.Errorf("left in %s: %s", dir, pids)
		}
	}
}

// grouped holds that all that the pod consists of on the host is in a cgroup below
// the pod's, in every hierarchy but that of devices.
func (p *pod) grouped(t *testing.T) {
	t.Helper()
	leaf := path.Join(string(p.group), p.id)
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
