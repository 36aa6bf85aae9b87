package cri

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/image"
)

// testHostPaths: two containers of a pod have a directory of the host, as they have
// it without a VM: each reads at once what the other writes, one of them cannot
// write, and one sees what the host mounts there later. A subPath is a directory, or
// a file, of its own.
func testHostPaths(t *testing.T, r *runtime) {
	dir := t.TempDir()
	err := errors.Join(
		unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1M"),
		unix.Mount("", dir, "", unix.MS_SHARED, ""),
		os.MkdirAll(filepath.Join(dir, "later"), 0o755),
		os.WriteFile(filepath.Join(dir, "file"), []byte("of the host\n"), 0o644),
	)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err != nil {
		t.Fatal(err)
	}
	mounts := func(list ...*cri.Mount) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Mounts = list }
	}
	p := r.pod(t, virtioFS, nil)
	writer := p.start(t, spec{name: "writer", image: image.One, script: forever, change: mounts(
		&cri.Mount{HostPath: dir, ContainerPath: "/host"},
	)})
	reader := p.start(t, spec{name: "reader", image: image.One, script: forever, change: mounts(
		&cri.Mount{HostPath: dir, ContainerPath: "/host", Readonly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		&cri.Mount{HostPath: filepath.Join(dir, "file"), ContainerPath: "/etc/one", Readonly: true},
	)})
	writer.sh(t, "echo from a container >> /host/file")
	// The guest knows the size of a file for a second.
	if got := reader.sh(t, "for i in 1 2 3 4 5 6; do test $(cat /host/file /etc/one | wc -l) = 4 && break; sleep 0.5; done; cat /host/file /etc/one"); got != "of the host\nfrom a container\nof the host\nfrom a container\n" {
		t.Errorf("the reader has %q", got)
	}
	if got := reader.sh(t, "for f in /host/x /etc/one; do echo x > $f && echo wrote $f; done 2>/dev/null; true"); got != "" {
		t.Errorf("the reader %s", got)
	}
	later := filepath.Join(dir, "later")
	if err := errors.Join(unix.Mount("tmpfs", later, "tmpfs", 0, "size=1M"), os.WriteFile(filepath.Join(later, "here"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	// The guest knows a directory for a second.
	if got := reader.sh(t, "for i in 1 2 3 4 5 6; do ls /host/later | grep here && exit; sleep 0.5; done; ls /host"); got != "here\n" {
		t.Errorf("the reader sees %q", got)
	}
	if got := writer.sh(t, "ls /host/later"); got != "" {
		t.Errorf("the writer sees %q", got)
	}
}
