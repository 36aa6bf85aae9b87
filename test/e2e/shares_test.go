package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// sharedSource is a directory of the host with more in it than is ever copied.
func sharedSource(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	err := errors.Join(
		os.Mkdir(filepath.Join(dir, "below"), 0o755),
		os.WriteFile(filepath.Join(dir, "big"), make([]byte, 40<<20), 0o644),
		os.WriteFile(filepath.Join(dir, "owned"), []byte("private\n"), 0o600),
		os.Chown(filepath.Join(dir, "owned"), 1234, 4321),
		os.Symlink("owned", filepath.Join(dir, "link")),
		os.Symlink("/etc/image", filepath.Join(dir, "outside")),
		os.Link(filepath.Join(dir, "owned"), filepath.Join(dir, "twin")),
		unix.Mount("tmpfs", filepath.Join(dir, "below"), "tmpfs", 0, "size=1M"),
		os.WriteFile(filepath.Join(dir, "below/mounted"), []byte("another filesystem\n"), 0o644),
	)
	t.Cleanup(func() {
		if err := unix.Unmount(filepath.Join(dir, "below"), 0); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestDirectoriesOfTheHostThroughVirtioFS are the host's own: what either side
// writes the other reads, with owners, links and filesystems as they are, and
// what is read-only is so on the host as well. When the container is gone nothing
// is left of what showed them.
func TestDirectoriesOfTheHostThroughVirtioFS(t *testing.T) {
	bed := e2etest.Newest(t)
	if err := harness.Need("tools", bed.Tree.Virtiofsd()); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "shim.toml")
	err := bed.ShimConfig().Set("mounts", "bind", "virtiofs").Set("mounts", "virtiofsd", bed.Tree.Virtiofsd()).Write(config)
	if err != nil {
		t.Fatal(err)
	}
	dir := sharedSource(t)
	bind := func(source, at string, options ...string) specs.Mount {
		return specs.Mount{Type: "bind", Source: source, Destination: at, Options: options}
	}
	c := bed.Start(t, e2etest.Spec{
		Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sleep", "1000"}, Config: config,
		Opts: []oci.SpecOpts{oci.WithMounts([]specs.Mount{
			bind(dir, "/data", "rbind", "rw"),
			bind(dir, "/ro", "rbind", "ro"),
			bind(dir, "/flat", "bind", "nosuid"),
			bind(filepath.Join(dir, "link"), "/etc/single", "bind", "ro"),
			bind(filepath.Join(dir, "below"), "/below", "rbind", "rro"),
		})},
	})
	in := func(script string) string {
		t.Helper()
		out, errs, code := c.RunExec(t, "sh", "-c", script)
		if code != 0 {
			t.Errorf("%s: code %d: %s", script, code, errs)
		}
		return out
	}
	for script, want := range map[string]string{
		"wc -c < /data/big":                       "41943040",
		"stat -c '%u %g %a %h' /data/owned":       "1234 4321 600 2",
		"cat /data/link /etc/single":              "private\nprivate",
		"readlink /data/outside; cat /ro/outside": "/etc/image\n" + in("cat /etc/image"),
		"cat /data/below/mounted /below/mounted":  "another filesystem\nanother filesystem",
		"ls /flat/below | wc -l":                  "0",
	} {
		if got := in(script + "; true"); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}

	in("echo of the guest > /data/new && ln /data/new /data/new2 && mkdir /data/dir && mv /data/new2 /data/dir/moved && mkfifo /data/dir/fifo && echo more >> /data/below/mounted && busybox chown 5:6 /data/new && sync")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "dir/moved"), &st); err != nil || st.Uid != 5 || st.Gid != 6 || st.Nlink != 2 {
		t.Errorf("the host sees %+v: %v", st, err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "below/mounted")); err != nil || string(text) != "another filesystem\nmore\n" {
		t.Errorf("the host reads %q: %v", text, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "later"), []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := in("cat /data/later /ro/new"); got != "of the host\nof the guest\n" {
		t.Errorf("the guest reads %q", got)
	}
	refused := in("for f in /ro/x /ro/below/x /below/x /etc/single; do echo x > $f && echo wrote $f; done 2>/dev/null; busybox mknod /data/null c 1 3 2>/dev/null && echo made; true")
	if refused != "" {
		t.Errorf("not refused: %s", refused)
	}
	c.Kill(t, syscall.SIGKILL)
	c.WaitExit(t)
	c.Delete(t)
	if entries, err := os.ReadDir(filepath.Join(dir, "dir")); err != nil || len(entries) != 2 {
		t.Errorf("left on the host: %v, %v", entries, err)
	}
}
