package cri

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/atomicdir"
	"github.com/erofsvm/erofsvm/test/image"
)

// volumes are what a kubelet has prepared on the host for a pod.
type volumes struct {
	config, scratch, cache, sub string // directories
	message                     string // file
	disk                        string // block device
}

// prepare makes them as a kubelet does, in a directory of its own.
func prepare(t *testing.T) volumes {
	t.Helper()
	root := filepath.Join(t.TempDir(), "pods", "uid")
	of := func(plugin, name string) string { return filepath.Join(root, "volumes", "kubernetes.io~"+plugin, name) }
	v := volumes{
		config: of("configmap", "config"), scratch: of("empty-dir", "scratch"), cache: of("empty-dir", "cache"),
		sub: filepath.Join(root, "volume-subpaths", "scratch", "reader", "0"), message: filepath.Join(root, "containers", "writer", "12ab34cd"),
	}
	for _, dir := range []string{v.config, v.scratch, v.cache, v.sub, filepath.Dir(v.message), filepath.Join(v.scratch, "part")} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	must(t, atomicdir.Write(v.config, map[string]string{"key": "old", "gone": "x"}))
	must(t, os.Chown(v.scratch, 0, 1234))
	must(t, os.Chmod(v.scratch, 0o777|os.ModeSetgid))
	mount(t, "tmpfs", v.cache, "tmpfs", 0, "size=4194304,mode=1777")
	mount(t, filepath.Join(v.scratch, "part"), v.sub, "", unix.MS_BIND, "")
	must(t, os.WriteFile(v.message, nil, 0o666))
	v.disk = blockDevice(t)
	return v
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	must(t, unix.Mount(source, target, fstype, flags, data))
	t.Cleanup(func() { must(t, unix.Unmount(target, 0)) })
}

// blockDevice is a block device of the host that has a text at its beginning.
func blockDevice(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	must(t, errors.Join(os.WriteFile(file, []byte("of the host\n"), 0o600), os.Truncate(file, 1<<20)))
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	must(t, err)
	node := strings.TrimSpace(string(out))
	t.Cleanup(func() { must(t, exec.Command("losetup", "--detach", node).Run()) })
	return node
}

// testVolumes is a pod with what Kubernetes mounts into containers.
func testVolumes(t *testing.T, r *runtime, handler string) {
	v := prepare(t)
	p := r.pod(t, handler, nil)
	writer := p.start(t, spec{name: "writer", image: image.One, script: forever, change: func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{
			{HostPath: v.config, ContainerPath: "/config", Readonly: true, RecursiveReadOnly: true},
			{HostPath: v.scratch, ContainerPath: "/scratch"},
			{HostPath: v.cache, ContainerPath: "/cache"},
			{HostPath: v.message, ContainerPath: "/why"},
		}
		c.Devices = []*cri.Device{{HostPath: v.disk, ContainerPath: "/dev/xda", Permissions: "rwm"}}
	}})
	reader := p.start(t, spec{name: "reader", image: image.Two, script: forever, change: func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{
			{HostPath: v.scratch, ContainerPath: "/scratch", Readonly: true},
			{HostPath: v.cache, ContainerPath: "/cache"},
			{HostPath: v.sub, ContainerPath: "/part"},
		}
	}})
	t.Run("an emptyDir is the pod's", func(t *testing.T) { sharedVolumes(t, v, writer, reader) })
	t.Run("a configmap changes", func(t *testing.T) { refreshed(t, v, writer) })
	t.Run("a block device", func(t *testing.T) { raw(t, v, writer, reader) })
	t.Run("last words", func(t *testing.T) { lastWords(t, v, writer) })
	again := p.start(t, spec{name: "writer", attempt: 1, image: image.One, script: forever, change: func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: v.scratch, ContainerPath: "/scratch"}}
	}})
	if out := again.sh(t, "cat /scratch/part/file"); out != "of the writer\n" {
		t.Errorf("a container that comes back finds %q", out)
	}
	again.sh(t, "echo at the end > /scratch/last")
	t.Run("an image", func(t *testing.T) { imageVolume(t, p) })
	p.remove(t)
	if !*all {
		return
	}
	// The kubelet makes a new pod sandbox of the same pod with the same volumes.
	next := r.pod(t, handler, nil)
	heir := next.start(t, spec{name: "heir", image: image.One, script: forever, change: func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: v.scratch, ContainerPath: "/scratch"}}
	}})
	if out := heir.sh(t, "cat /scratch/part/file /scratch/last"); out != "of the writer\nat the end\n" {
		t.Errorf("the next virtual machine of the pod finds %q", out)
	}
	next.remove(t)
}

// says holds what scripts print, in any order, to what they should.
func says(t *testing.T, c *container, scripts map[string]string) {
	t.Helper()
	for script, want := range scripts {
		if got := c.sh(t, script); got != want {
			t.Errorf("%s: %s says %q, want %q", c.name, script, got, want)
		}
	}
}

func sharedVolumes(t *testing.T, v volumes, writer, reader *container) {
	writer.sh(t, "echo of the writer > /scratch/part/file; echo in memory > /cache/file")
	says(t, reader, map[string]string{
		"cat /scratch/part/file /part/file /cache/file":                         "of the writer\nof the writer\nin memory\n",
		"stat -c '%a %g' /scratch":                                              "2777 1234\n",
		"ls /scratch":                                                           "part\n",
		"awk '$2 == \"/cache\" {print $3}' /proc/mounts":                        "tmpfs\n",
		"awk '$2 == \"/scratch\" {print $3}' /proc/mounts":                      "ext4\n",
		"df -k /cache | awk 'END {print $2}'":                                   "4096\n",
		"touch /scratch/no 2> /dev/null || echo read-only":                      "read-only\n",
		"test $(df -k /scratch | awk 'END {print $2}') -gt 1000000 && echo yes": "yes\n",
	})
	if entries, err := os.ReadDir(filepath.Join(v.scratch, "part")); err != nil || len(entries) != 0 {
		t.Errorf("on the host there is %v, %v", entries, err)
	}
}

func refreshed(t *testing.T, v volumes, c *container) {
	says(t, c, map[string]string{"cat /config/key /config/gone": "oldx"})
	must(t, atomicdir.Write(v.config, map[string]string{"key": "new", "more": "y"}))
	until(t, "the new content", func() (bool, error) {
		// The old goes away while it is listed.
		return c.sh(t, "cat /config/key; ls -A /config 2> /dev/null | grep -c '^[.][.][0-9]'") == "new1\n", nil
	})
	says(t, c, map[string]string{"ls /config": "key\nmore\n"})
}

// imageVolume has another image's files in a directory of a container, to be read.
func imageVolume(t *testing.T, p *pod) {
	c := p.start(t, spec{name: "borrower", image: image.One, script: forever, change: func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{Image: &cri.ImageSpec{Image: image.Two}, ContainerPath: "/other", Readonly: true}}
	}})
	says(t, c, map[string]string{
		"cat /etc/image /other/etc/image":                                "one\ntwo\n",
		"echo x 2> /dev/null > /other/etc/image || cat /other/etc/image": "two\n",
	})
	c.delete(t)
}

func raw(t *testing.T, v volumes, writer, reader *container) {
	if out := writer.sh(t, "head -n 1 /dev/xda"); out != "of the host\n" {
		t.Errorf("the guest's device has %q", out)
	}
	writer.sh(t, "echo of the guest | dd of=/dev/xda conv=notrunc,fsync 2> /dev/null")
	text := make([]byte, 13)
	f, err := os.Open(v.disk)
	must(t, err)
	defer f.Close()
	if _, err := f.ReadAt(text, 0); err != nil || string(text) != "of the guest\n" {
		t.Errorf("the host's device has %q, %v", text, err)
	}
	says(t, reader, map[string]string{"ls /dev/xda 2> /dev/null || echo none": "none\n"})
}

func lastWords(t *testing.T, v volumes, c *container) {
	c.sh(t, "echo that is why > /why; touch /tmp/die")
	if code := c.exit(t); code != 3 {
		t.Errorf("it ends with %d", code)
	}
	if text, err := os.ReadFile(v.message); err != nil || string(text) != "that is why\n" {
		t.Errorf("the host has %q, %v", text, err)
	}
	c.delete(t)
	if _, err := os.Stat(v.disk); err != nil {
		t.Error(err)
	}
}
