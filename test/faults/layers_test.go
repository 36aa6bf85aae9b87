package faults

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

func TestMain(m *testing.M) { e2etest.Main(m) }

// rootfs is what the snapshotter would hand out for an image of two layers.
type rootfs struct {
	mounts       []mount.Mount
	upper, lower int // indexes of the two erofs mounts
}

// prepare prepares a writable snapshot for the time of the test.
func prepare(t *testing.T, bed *e2etest.Bed, ref string) rootfs {
	t.Helper()
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
	defer cancel()
	image, err := bed.Client().GetImage(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := image.RootFS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	service := bed.Client().SnapshotService(harness.Snapshotter)
	// No container refers to it: the label keeps the garbage collector away.
	mounts, err := service.Prepare(ctx, t.Name(), identity.ChainID(ids).String(),
		snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(bed.Context(context.Background()), e2etest.Step)
		defer cancel()
		if err := service.Remove(ctx, t.Name()); err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("remove the snapshot: %v", err)
		}
	})
	r := rootfs{mounts: mounts, upper: -1, lower: -1}
	for i, m := range mounts {
		if m.Type == "erofs" && r.upper < 0 {
			r.upper = i
		} else if m.Type == "erofs" {
			r.lower = i
		}
	}
	if r.upper < 0 || r.lower < 0 {
		t.Fatalf("no two layers in %v", mounts)
	}
	return r
}

// copyLayer copies a layer, changed, to a name in a directory that is made.
func copyLayer(t *testing.T, from, to string, change func([]byte) []byte) string {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, change(data), 0o644); err != nil {
		t.Fatal(err)
	}
	return to
}

// longPath is longer than QEMU takes in a VMDK descriptor.
var longPath = strings.Repeat(strings.Repeat("d", 100)+"/", 5) + "layer.erofs"

func same(data []byte) []byte { return data }

// TestABrokenLayerIsRefusedByName: whatever is wrong with a layer's file, the
// create fails with what is wrong and with which file it is.
func TestABrokenLayerIsRefusedByName(t *testing.T) {
	for _, c := range []struct {
		name   string
		plain  bool   // QEMU is given paths
		file   string // "" keeps the name
		change func([]byte) []byte
		want   string // in the error, beside the file's name
	}{
		{name: "missing", want: "no such file"},
		{name: "empty", change: func([]byte) []byte { return nil }, want: "empty"},
		{name: "truncated", change: func(d []byte) []byte { return d[:len(d)/2/4096*4096] }, want: "truncated"},
		{name: "not EROFS", change: func(d []byte) []byte { return bytes.Repeat([]byte("text"), 2048) }, want: "not an EROFS image"},
		// A tail of any length after the image is legal, a missing byte is not.
		{name: "not aligned", change: func(d []byte) []byte { return d[:len(d)-1] }, want: "truncated"},
		{name: "newline in the path", file: "a\nRW 8 FLAT", change: same, want: "control character"},
		// A path that cannot stand in a descriptor matters only where it has to.
		{name: "quote in the path", plain: true, file: `a"b.erofs`, change: same, want: `"`},
		{name: "path over 511 bytes", plain: true, file: longPath, change: same, want: "511"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bed := e2etest.Newest(t)
			r := prepare(t, bed, bed.Image(t, "two", harness.Snapshotter))
			name := c.file
			if name == "" {
				name = "broken.erofs"
			}
			file := filepath.Join(t.TempDir(), name)
			if c.change != nil {
				copyLayer(t, r.mounts[r.lower].Source, file, c.change)
			}
			r.mounts[r.lower].Source = file
			config := ""
			if c.plain {
				config = write(t, bed.ShimConfig().Set("debug", "plain_paths", true))
			}
			err := createFails(t, bed, r.mounts, config)
			if text := err.Error(); !strings.Contains(text, c.want) {
				t.Errorf("the error does not say %q: %v", c.want, err)
			}
			if base := filepath.Base(file); !strings.ContainsAny(base, "\"\n") && !strings.Contains(err.Error(), base) {
				t.Errorf("the error does not name %s: %v", base, err)
			}
		})
	}
}

// TestAnFsmetaOfOtherLayersIsRefused: a device table that does not match the
// layers would mount without complaint and give wrong data later.
func TestAnFsmetaOfOtherLayersIsRefused(t *testing.T) {
	bed := e2etest.Newest(t)
	r := prepare(t, bed, bed.Image(t, "two", harness.Snapshotter))
	newer, older := r.mounts[r.upper].Source, r.mounts[r.lower].Source
	fsmeta := filepath.Join(t.TempDir(), "fsmeta.erofs")
	mkfs := exec.Command(bed.Tree.MkfsErofs(), "--aufs", "--ovlfs-strip=1", "--quiet", fsmeta, older, newer)
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	for _, c := range []struct {
		name    string
		devices []string
	}{
		{"other order", []string{newer, older}},
		{"one missing", []string{older}},
		{"one too many", []string{older, newer, newer}},
		{"one twice", []string{older, older}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mounts := slices.Clone(r.mounts)
			options := []string{"ro", "loop"}
			for _, device := range c.devices {
				options = append(options, "device="+device)
			}
			mounts[r.upper] = mount.Mount{Type: "erofs", Source: fsmeta, Options: options}
			// The overlay has one lower now.
			mounts = slices.Delete(mounts, r.lower, r.lower+1)
			last := &mounts[len(mounts)-1]
			last.Options = slices.Clone(last.Options)
			for i, option := range last.Options {
				if strings.HasPrefix(option, "lowerdir=") {
					last.Options[i] = "lowerdir={{ mount 1 }}"
				}
			}
			err := createFails(t, bed, mounts, "")
			if !strings.Contains(err.Error(), "fsmeta.erofs") || !strings.Contains(err.Error(), "device table does not match") {
				t.Errorf("the error does not name the fsmeta and its device table: %v", err)
			}
		})
	}
}

// createFails asks for a container that must not come to be, and returns the
// error.
func createFails(t *testing.T, bed *e2etest.Bed, mounts []mount.Mount, config string) error {
	t.Helper()
	image := bed.Image(t, "two", harness.Snapshotter)
	_, err := bed.Create(t, e2etest.Spec{Image: image, Args: []string{"/bin/true"}, Rootfs: mounts, Config: config})
	if err == nil {
		t.Fatal("the container was created")
	}
	t.Logf("the caller gets: %v", err)
	return err
}
