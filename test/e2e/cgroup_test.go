package e2e

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/sys/mountinfo"

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
