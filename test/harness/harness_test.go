package harness

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/image-spec/identity"
	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/test/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// archive writes a Docker archive of one image with so many one-file layers.
func archive(t *testing.T, ref string, layers int) string {
	t.Helper()
	image := empty.Image
	for i := range layers {
		var text bytes.Buffer
		w := tar.NewWriter(&text)
		file := string(rune('a' + i))
		if err := w.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: 1, Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(file)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(text.Bytes())), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			t.Fatal(err)
		}
	}
	image, err := mutate.ConfigFile(image, platformed(t, image))
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(path, tag, image); err != nil {
		t.Fatal(err)
	}
	return path
}

func platformed(t *testing.T, image v1.Image) *v1.ConfigFile {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	return config
}

func needTools(t *testing.T, release string) Tree {
	t.Helper()
	tree, err := FindTree()
	if err != nil {
		t.Fatal(err)
	}
	need.NoError(t, Need("tools", tree.Containerd(release), tree.Ctr(release), tree.MkfsErofs()))
	need.Root(t, "for containerd")
	return tree
}

// TestEveryReleaseHandsOutErofsLayers: each release of containerd imports an
// image into the EROFS snapshotter and prepares the rootfs mounts that the shim
// expects, one erofs a layer; and when it has stopped, nothing is left.
func TestEveryReleaseHandsOutErofsLayers(t *testing.T) {
	for _, release := range Releases {
		t.Run(release, func(t *testing.T) {
			tree := needTools(t, release)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			c, err := Start(ctx, tree, Options{Release: release})
			if err != nil {
				t.Fatal(err)
			}
			stopped := false
			defer func() {
				if !stopped {
					_ = c.Stop(context.WithoutCancel(ctx))
				}
			}()

			const ref, layers = "erofsvm.test/harness:latest", 3
			names, err := c.Import(ctx, archive(t, ref, layers), Snapshotter)
			if err != nil {
				t.Fatalf("%v\n%s", err, c.LogTail(30))
			}
			if len(names) != 1 || names[0] != ref {
				t.Errorf("imported %q, want %s", names, ref)
			}
			image, err := c.Client().GetImage(c.Context(ctx), ref)
			if err != nil {
				t.Fatal(err)
			}
			ids, err := image.RootFS(c.Context(ctx))
			if err != nil {
				t.Fatal(err)
			}
			service := c.Client().SnapshotService(Snapshotter)
			mounts, err := service.Prepare(c.Context(ctx), "try", identity.ChainID(ids).String(), snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"}))
			if err != nil {
				t.Fatal(err)
			}
			var types []string
			for _, m := range mounts {
				types = append(types, m.Type)
				if m.Type == "erofs" {
					if info, err := os.Stat(m.Source); err != nil || info.Size() == 0 {
						t.Errorf("layer %s: %v", m.Source, err)
					}
				}
			}
			t.Logf("mounts: %v", types)
			if got := strings.Count(strings.Join(types, " "), "erofs"); got != layers {
				t.Errorf("%d erofs mounts for %d layers: %v", got, layers, types)
			}
			if last := types[len(types)-1]; last != "format/mkdir/overlay" {
				t.Errorf("the last mount is %s, not the overlay", last)
			}

			soon, cancelSoon := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancelSoon()
			left, err := c.Leftovers(soon)
			if err != nil {
				t.Fatal(err)
			}
			if len(left) != 1 || left[0] != "active snapshot try" {
				t.Errorf("leftovers %q, want the active snapshot", left)
			}
			if err := service.Remove(c.Context(ctx), "try"); err != nil && !errdefs.IsNotFound(err) {
				t.Fatal(err)
			}
			if left, err = c.Leftovers(ctx); err != nil || len(left) != 0 {
				t.Errorf("leftovers %q, error %v", left, err)
			}

			dir, group := c.Dir(), c.group.dir
			stopped = true
			if err := c.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			for _, gone := range []string{dir, group, c.dirs.run} {
				if _, err := os.Stat(gone); err == nil {
					t.Errorf("%s is still there", gone)
				}
			}
		})
	}
}

// TestLeftoversSeesWhatDaemonizes: a process that has left its parent and its
// session behind is still found, named, and ended by Stop.
func TestLeftoversSeesWhatDaemonizes(t *testing.T) {
	tree := needTools(t, Releases[0])
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g, err := newGroup("erofsvm-selftest")
	if err != nil {
		t.Fatal(err)
	}
	c := &Containerd{tree: tree, group: g, command: &exec.Cmd{Process: &os.Process{Pid: os.Getpid()}}}
	cgroup, err := g.open()
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	cmd := exec.Command("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
	cmd.SysProcAttr = inGroup(cgroup)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	soon, cancelSoon := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancelSoon()
	left, err := g.waitEmpty(soon, c.Pid())
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || !strings.Contains(describe(left), "sleep 1000") {
		t.Errorf("left: %s, want the sleep", describe(left))
	}
	if err := g.kill(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(g.dir); err == nil {
		t.Errorf("%s is still there", g.dir)
	}
}

// TestStartSweepsUpAfterAKilledRun: what a test binary left that had no time to
// stop anything is gone when the next one starts.
func TestStartSweepsUpAfterAKilledRun(t *testing.T) {
	tree := needTools(t, Releases[0])
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	killed, err := Start(ctx, tree, Options{})
	if err != nil {
		t.Fatal(err)
	}
	// The lock goes with the process that held it; the daemon stays.
	if err := killed.lock.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := Start(ctx, tree, Options{})
	if err != nil {
		t.Fatal(err)
	}
	<-killed.exited
	for _, gone := range []string{killed.dirs.base, killed.dirs.run, killed.group.dir} {
		if _, err := os.Stat(gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	if err := killed.client.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// TestANamedDirectoryIsUsedAgainWithoutItsTasks: a run that was killed must not
// fail the next ones.
func TestANamedDirectoryIsUsedAgainWithoutItsTasks(t *testing.T) {
	tree := needTools(t, Releases[0])
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o := Options{Name: fmt.Sprintf("test-%d", os.Getpid())}
	c, err := Start(ctx, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	base := c.dirs.base
	t.Cleanup(func() { os.RemoveAll(base) })
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(c.tasks(), c.namespace(), "killed"), 0o711); err != nil {
		t.Fatal(err)
	}
	if c, err = Start(ctx, tree, o); err != nil {
		t.Fatal(err)
	}
	looking, done := context.WithTimeout(ctx, time.Second)
	defer done()
	if left, err := c.Leftovers(looking); err != nil || len(left) > 0 {
		t.Errorf("left %q, %v", left, err)
	}
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// TestStartSaysWhyContainerdDoesNot: the end of the daemon's log is in the
// error, and nothing is left.
func TestStartSaysWhyContainerdDoesNot(t *testing.T) {
	tree := needTools(t, Releases[0])
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Start(ctx, tree, Options{DefaultSize: "a lot"})
	if err == nil {
		t.Fatal("a containerd with a senseless size started")
	}
	if !strings.Contains(err.Error(), "a lot") {
		t.Errorf("the error does not carry the daemon's: %v", err)
	}
	if _, err := os.Stat(c.Dir()); err == nil {
		t.Errorf("%s is still there", c.Dir())
	}
}
