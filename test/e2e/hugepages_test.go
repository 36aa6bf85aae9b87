package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/need"
)

// withHugePages is a limit of huge pages of 2 MiB, in bytes.
func withHugePages(bytes uint64) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: bytes}, {Pagesize: "1GB"}}
		return nil
	}
}

// TestHugePagesAreThereForWhoMayUseThem: a kubelet's volume of them, with as many as the
// container's limit allows and not one more.
func TestHugePagesAreThereForWhoMayUseThem(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	dir := filepath.Join(t.TempDir(), "pods", "uid", "volumes", "kubernetes.io~empty-dir", "pages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	need.NoError(t, unix.Mount("hugetlbfs", dir, "hugetlbfs", 0, "pagesize=2M"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	volume := oci.WithMounts([]specs.Mount{{Type: "bind", Source: dir, Destination: "/pages", Options: []string{"rbind", "rw"}}})

	c := bed.Start(t, e2etest.Spec{Image: image, Args: []string{"sleep", "1000"}, Opts: []oci.SpecOpts{volume, withHugePages(8 << 20)}})
	out, errs, code := c.RunExec(t, "sh", "-c", strings.Join([]string{
		`awk '$2 == "/pages" {print $3}' /proc/mounts`,
		`awk '/^HugePages_(Total|Free)/ {print $2}' /proc/meminfo`,
		`fallocate -l 8388608 /pages/file && awk '/^HugePages_Free/ {print $2}' /proc/meminfo`,
		`fallocate -l 10485760 /pages/file 2> /dev/null || echo no more`,
	}, "; "))
	if code != 0 || out != "hugetlbfs\n4\n4\n0\nno more\n" {
		t.Errorf("code %d, %q %s", code, out, errs)
	}

	// More than the guest can have, which is what it has begun with and the plugged.
	_, err := bed.Create(t, e2etest.Spec{Image: image, Args: []string{"true"}, Opts: []oci.SpecOpts{volume, withHugePages(1 << 50)}})
	if err == nil || !strings.Contains(err.Error(), "hypervisor.max_memory_mib") {
		t.Errorf("more than there is: %v", err)
	}
}
