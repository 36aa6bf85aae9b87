package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// TestAVMIsInTheCgroupOfItsContainer on the host, as a process of runc would be, until
// the container is deleted or its shim has died.
func TestAVMIsInTheCgroupOfItsContainer(t *testing.T) {
	bed := e2etest.Newest(t)
	config := filepath.Join(t.TempDir(), "shim.toml")
	if err := bed.ShimConfig().Set("host", "cgroup", "pod").Write(config); err != nil {
		t.Fatal(err)
	}
	group := path.Join(bed.Cgroup(), "ctr")
	t.Cleanup(func() { // the parents stay, as with runc
		for _, hierarchy := range dirsOf(t, bed.Cgroup()) {
			_ = os.Remove(hierarchy) // but that of the bed has the daemon in it
		}
	})
	for _, dies := range []bool{false, true} {
		c := bed.Start(t, e2etest.Spec{
			Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sleep", "1000"}, Config: config,
			Opts: []oci.SpecOpts{oci.WithCgroup(group)},
		})
		shims, err := bed.Shims()
		if err != nil || len(shims) != 1 {
			t.Fatalf("shims: %v, %v", shims, err)
		}
		for _, pid := range []int{shims[0], int(c.Task.Pid())} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			if err != nil || !strings.Contains(string(text), ":"+group+"\n") {
				t.Errorf("process %d is in %s, %v", pid, text, err)
			}
		}
		if dies {
			events := bed.Events(t, c.ID)
			if err := syscall.Kill(shims[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			events.Until(t, "/tasks/delete")
			c.Task = nil
		} else {
			c.Kill(t, syscall.SIGKILL)
			c.WaitExit(t)
			c.Delete(t)
		}
		if left := dirsOf(t, group); len(left) > 0 {
			t.Errorf("left, shim died %v: %v", dies, left)
		}
	}
}

// TestCgroupsOfVersion2AreMadeWithTheirControllers where there are any, which a host with
// version 1 has not, and a guest has: so the tests of the package run there.
func TestCgroupsOfVersion2AreMadeWithTheirControllers(t *testing.T) {
	bed, dir := e2etest.Newest(t), t.TempDir()
	build := exec.Command("go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "hostgroup.test"), "./runtime/hostgroup")
	build.Dir, build.Env = bed.Tree.Root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c, code := bed.Run(t, e2etest.Spec{
		Image: bed.Image(t, "one", harness.Snapshotter),
		// Its own processes step aside: a cgroup that has some gives its controllers to
		// no other (Documentation/admin-guide/cgroup-v2.rst, "No Internal Process").
		Args: []string{"sh", "-c", "cd /sys/fs/cgroup; mkdir aside; for p in $(cat cgroup.procs); do echo $p > aside/cgroup.procs; done 2> /dev/null; " +
			"cat cgroup.controllers; /tests/hostgroup.test -test.v -test.run '^TestGroup'"},
		Opts: []oci.SpecOpts{
			oci.WithPrivileged,
			oci.WithMounts([]specs.Mount{
				{Type: "bind", Source: dir, Destination: "/tests", Options: []string{"rbind", "ro"}},
				{Type: "cgroup", Source: "cgroup", Destination: "/sys/fs/cgroup", Options: []string{"rw"}},
			}),
		},
	})
	said := c.Stdout.String()
	controllers, _, _ := strings.Cut(said, "\n")
	if code != 0 || strings.Count(said, "--- PASS") < 4 || !strings.Contains(controllers, "memory") {
		t.Errorf("code %d:\n%s%s", code, said, c.Stderr)
	}
}

// dirsOf are the directories that there are of a cgroup.
func dirsOf(t *testing.T, group string) []string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		t.Fatal(err)
	}
	var there []string
	for _, m := range mounts {
		dir := filepath.Join(m.Mountpoint, group)
		if _, err := os.Stat(dir); err == nil {
			there = append(there, dir)
		}
	}
	return there
}
