package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/configs/dropin"
	"github.com/erofsvm/erofsvm/configs/hostcheck"
	"github.com/erofsvm/erofsvm/configs/hostroot"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/need"
)

// criOf is the section of the CRI's runtimes in a version of the format.
func criOf(version int) string {
	if version == 2 {
		return "io.containerd.grpc.v1.cri"
	}
	return "io.containerd.cri.v1.runtime"
}

// theirMain is a main file of an administrator, which has a runtime of its own and
// imports a folder beside it.
func theirMain(version int, dir string) string {
	return fmt.Sprintf(`version = %d
root = %q
state = %q
imports = ["conf.d/*.toml"]
# They would touch the host outside of the test, or want devices.
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.monitor.task.v1.cgroups"]
%s
[plugins.%q.containerd]
  default_runtime_name = "theirs"
  [plugins.%[5]q.containerd.runtimes.theirs]
    runtime_type = "io.containerd.runc.v2"
    [plugins.%[5]q.containerd.runtimes.theirs.options]
      SystemdCgroup = true
[plugins."io.containerd.differ.v1.erofs"]
  enable_tar_index = true
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.image-verifier.v1.bindir"]
  bin_dir = %[6]q
%[7]s
`, version, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socketOf(version, filepath.Join(dir, "sock")), criOf(version),
		filepath.Join(dir, "verifiers"), criSettings(version, dir))
}

// criSettings keep the CRI's files in a directory. A file in version 2 is never
// started with.
func criSettings(version int, dir string) string {
	if version == 2 {
		return ""
	}
	return fmt.Sprintf(`[plugins."io.containerd.cri.v1.runtime"]
  netns_mounts_under_state_dir = true
  disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [%q]
  conf_dir = %[1]q
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"`, filepath.Join(dir, "cni"))
}

// socketOf is where a version of the format has the socket.
func socketOf(version int, socket string) string {
	if version == 4 {
		return fmt.Sprintf("[plugins.\"io.containerd.server.v1.grpc\"]\n  address = %q\n[plugins.\"io.containerd.server.v1.ttrpc\"]\n  address = %q", socket, socket+".ttrpc")
	}
	return fmt.Sprintf("[grpc]\n  address = %q", socket)
}

// newContainerdBed is a host with one release of containerd, which the installer
// runs there, in its root directory.
func newContainerdBed(t *testing.T, release string, version int) (*bed, harness.Tree) {
	t.Helper()
	tree, err := harness.FindTree()
	if err == nil {
		err = harness.Need("tools", tree.Containerd(release), tree.MkfsErofs())
	}
	need.NoError(t, err)
	need.Root(t, "to chroot(2)")
	b := newBed(t, nil)
	// Its sockets want a short path.
	short, err := os.MkdirTemp("", "ev")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(short); err != nil {
			t.Error(err)
		}
	})
	// Not in tests that run at once: a child of another one that is just being forked
	// holds the file open, and it cannot be run (golang.org/issue/22315).
	program, err := os.ReadFile(tree.Containerd(release))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "usr/bin/containerd"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	if version != 0 {
		b.write("etc/containerd/config.toml", theirMain(version, short))
	}
	b.options.Containerd = "containerd"
	if b.options.Release, err = hostcheck.Release(t.Context(), b.root, "containerd"); err != nil {
		t.Fatal(err)
	}
	return b, tree
}

// value is that at a path of a document, nil if there is none.
func value(doc any, path ...string) any {
	for _, p := range path {
		table, ok := doc.(map[string]any)
		if !ok {
			return nil
		}
		doc = table[p]
	}
	return doc
}

func (b *bed) dumped(config string) (map[string]any, string) {
	b.t.Helper()
	var out, said bytes.Buffer
	cmd := exec.CommandContext(b.t.Context(), filepath.Join(b.dir, "usr/bin/containerd"), "--config", config, "config", "dump")
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		b.t.Fatalf("%v: %s", err, said.String())
	}
	var doc map[string]any
	if err := toml.Unmarshal(out.Bytes(), &doc); err != nil {
		b.t.Fatal(err)
	}
	return doc, said.String()
}

var beside = []struct {
	release  string
	versions []int // of the administrator's file, 0 for none
}{
	{"2.4.2", []int{0, 2, 4}}, {"2.3.7", []int{0, 3}}, {"2.2.9", []int{0, 2, 3}},
}

// TestEachContainerdReadsTheDropinAsMeant has what containerd says it would run
// with: our keys, all of them known, and the administrator's as they were.
func TestEachContainerdReadsTheDropinAsMeant(t *testing.T) {
	for _, tc := range beside {
		for _, version := range tc.versions {
			t.Run(fmt.Sprintf("%s beside version %d", tc.release, version), func(t *testing.T) {
				b, _ := newContainerdBed(t, tc.release, version)
				b.options.Dropin.Immutable = true
				later := tc.release != "2.2.9"
				sandboxer := "podsandbox"
				if later {
					sandboxer = "shim"
					b.options.Dropin.DmverityMode = "on"
				}
				b.options.Dropin.Sandboxer = sandboxer
				b.install() // which tries it too
				main := filepath.Join(b.dir, DefaultMain)
				if version == 0 {
					// Its import is a path of that host.
					text := strings.ReplaceAll(b.read(DefaultMain), "/etc/containerd/", "")
					b.write(DefaultMain, text)
				}
				doc, said := b.dumped(main)
				if strings.Contains(said, "Ignoring unknown key") {
					t.Errorf("containerd says %s", said)
				}
				plugins := value(doc, "plugins")
				want := map[string]any{
					"io.containerd.cri.v1.runtime containerd runtimes erofsvm runtime_type":                    dropin.Runtime,
					"io.containerd.cri.v1.runtime containerd runtimes erofsvm snapshotter":                     "erofs",
					"io.containerd.cri.v1.runtime containerd runtimes erofsvm sandboxer":                       sandboxer,
					"io.containerd.cri.v1.runtime containerd runtimes erofsvm privileged_without_host_devices": true,
					"io.containerd.cri.v1.runtime containerd runtimes erofsvm pod_annotations":                 []any{"io.katacontainers.config*", "io.erofsvm.*"},
					"io.containerd.snapshotter.v1.erofs default_size":                                          "10G",
					"io.containerd.snapshotter.v1.erofs set_immutable":                                         true,
					"io.containerd.differ.v1.erofs mkfs_options":                                               []any{"-T0", "--mkfs-time", "--sort=none"},
					"io.containerd.differ.v1.erofs enable_tar_index":                                           false,
					"io.containerd.service.v1.diff-service default":                                            []any{"erofs", "walking"},
				}
				if version != 0 {
					want["io.containerd.cri.v1.runtime containerd default_runtime_name"] = "theirs"
					want["io.containerd.cri.v1.runtime containerd runtimes theirs options SystemdCgroup"] = true
				}
				if tc.release == "2.4.2" {
					want["io.containerd.cri.v1.runtime containerd runtimes erofsvm disable_pause_image_pull"] = true
				}
				if later {
					want["io.containerd.snapshotter.v1.erofs dmverity_mode"] = "on"
					want["io.containerd.differ.v1.erofs enable_dmverity"] = true
				} else {
					want["io.containerd.cri.v1.images runtime_platforms erofsvm snapshotter"] = "erofs"
				}
				for path, v := range want {
					if got := value(plugins, strings.Fields(path)...); fmt.Sprint(got) != fmt.Sprint(v) {
						t.Errorf("%s is %v, want %v", path, got, v)
					}
				}
			})
		}
	}
}

// TestEachContainerdStartsWithTheDropin starts them, beside the file of an
// administrator, and asks which plugins are loaded.
func TestEachContainerdStartsWithTheDropin(t *testing.T) {
	for _, tc := range beside {
		t.Run(tc.release, func(t *testing.T) {
			version := tc.versions[len(tc.versions)-1]
			b, tree := newContainerdBed(t, tc.release, version)
			b.install()
			doc, _ := b.dumped(filepath.Join(b.dir, DefaultMain))
			state := value(doc, "state").(string)
			b.startContainerd(tree, filepath.Dir(state))
			root, err := hostroot.New("/", "")
			if err != nil {
				t.Fatal(err)
			}
			report := hostcheck.Check(t.Context(), hostcheck.Host{
				Root: root, Config: configs.Default(), Shim: dropin.Shim, Containerd: "containerd", Socket: filepath.Join(filepath.Dir(state), "sock"),
			})
			pullForPods(t, filepath.Join(filepath.Dir(state), "sock"))
			i := slices.IndexFunc(report.Findings, func(f hostcheck.Finding) bool { return f.Name == "plugins" })
			if i < 0 || !report.Findings[i].OK {
				t.Errorf("%+v", report.Findings)
			}
		})
	}
}

// startContainerd starts the host's containerd, and returns when it serves.
func (b *bed) startContainerd(tree harness.Tree, dir string) {
	b.t.Helper()
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		b.t.Fatal(err)
	}
	defer ready.Close()
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(b.dir, "usr/bin/containerd"), "--config", filepath.Join(b.dir, DefaultMain))
	cmd.Env = []string{"PATH=" + filepath.Dir(tree.MkfsErofs()) + ":" + os.Getenv("PATH"), "NOTIFY_SOCKET=" + filepath.Join(dir, "notify")}
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || b.t.Failed() {
			b.t.Errorf("containerd: %v\n%s", err, log.String())
		}
	})
	if err := ready.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		b.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		n, err := ready.Read(buf)
		if err != nil {
			b.t.Fatalf("containerd does not become ready: %v", err)
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			return
		}
	}
}

// TestADropinThatContainerdWouldMixUpIsTakenBack tells the installer a wrong
// release: 2.2.9 with a file of 2.4's beside one in version 2 would forget the
// administrator's runtimes.
func TestADropinThatContainerdWouldMixUpIsTakenBack(t *testing.T) {
	b, _ := newContainerdBed(t, "2.2.9", 2)
	b.options.Release = dropin.Release{Major: 2, Minor: 3}
	_, err := b.Install(t.Context(), b.options)
	if err == nil || !strings.Contains(err.Error(), "as they were") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "etc/containerd/conf.d/erofsvm.toml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the drop-in is there: %v", err)
	}
	// With the right one it goes on from there.
	b.options.Release.Minor = 2
	b.install()
}

func TestAContainerdThatHangsIsNotWaitedForForever(t *testing.T) {
	b, _ := newContainerdBed(t, "2.4.2", 4)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Install(ctx, b.options); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
