package rootfs_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// chain makes n layers, oldest first: each adds a file of its own, replaces one
// of the layer below, and deletes what the layer two below has added.
func chain(t testing.TB, dir string, n int) []string {
	t.Helper()
	var layers []string
	for i := range n {
		entries := []erofstest.Entry{
			erofstest.Dir("d"),
			erofstest.File(fmt.Sprintf("d/own-%d", i), strings.Repeat(fmt.Sprintf("%d,", i), 1000*(i%3+1))),
			erofstest.File("d/shared", fmt.Sprintf("of layer %d", i)),
		}
		if i >= 2 {
			entries = append(entries, erofstest.File(fmt.Sprintf("d/.wh.own-%d", i-2), ""))
		}
		layers = append(layers, erofstest.Layer(t, dir, fmt.Sprintf("layer-%03d.erofs", i), entries))
	}
	return layers
}

func newPlanner(t testing.TB) *rootfs.Planner {
	return rootfs.NewPlanner(rootfs.Options{
		CacheDir: filepath.Join(t.TempDir(), "cache"), MkfsErofs: erofstest.Mkfs(t),
	})
}

// blockMounts is what containerd hands over for the layers, oldest first, and
// a writable image.
func blockMounts(upper string, layers ...string) []rootfs.Mount {
	mounts := []rootfs.Mount{{Type: "ext4", Source: upper, Options: []string{"rw", "loop"}}}
	for _, l := range slices.Backward(layers) {
		mounts = append(mounts, rootfs.Mount{Type: "erofs", Source: l, Options: []string{"ro", "loop"}})
	}
	lowerdir := "lowerdir={{ mount 1 }}"
	if len(layers) > 1 {
		lowerdir = fmt.Sprintf("lowerdir={{ overlay 1 %d }}", len(layers))
	}
	return append(mounts, rootfs.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
		"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
		"workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper", lowerdir,
	}})
}

// ext4Image is a file with just as much of ext4 as the planner reads.
func ext4Image(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rwlayer.img")
	super := make([]byte, 1024)
	super[0x38], super[0x39] = 0x53, 0xEF
	super[0x18] = 2 // blocks of 4 KiB
	for i := range 4 {
		super[4+i] = byte(size / 4096 >> (8 * i))
	}
	write(t, path, append(make([]byte, 1024), super...))
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestOneLayerIsARawDisk has the golden plan of the simplest image.
func TestOneLayerIsARawDisk(t *testing.T) {
	layer := chain(t, t.TempDir(), 1)[0]
	upper := ext4Image(t, 1<<20)
	plan, err := newPlanner(t).Plan(deadline(t), blockMounts(upper, layer))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(layer)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{
 "strategy": "raw",
 "reason": "there is one layer",
 "upper": "disk",
 "disks": [
  {
   "role": "upper",
   "driver": "raw",
   "path": %q,
   "readonly": false,
   "bytes": 1048576
  },
  {
   "role": "layers",
   "driver": "raw",
   "path": %q,
   "readonly": true,
   "bytes": %d
  }
 ],
 "storages": [
  {
   "disk": 0,
   "fstype": "ext4",
   "options": [
    "rw",
    "X-kata.overlay-upper",
    "X-kata.multi-layer=true",
    "X-kata.mkdir.path={{ mount 0 }}/upper:0755",
    "X-kata.mkdir.path={{ mount 0 }}/work:0755"
   ]
  },
  {
   "disk": 1,
   "fstype": "erofs",
   "options": [
    "ro",
    "X-kata.overlay-lower",
    "X-kata.multi-layer=true"
   ]
  }
 ],
 "warnings": []
}`, upper, layer, info.Size())
	got, err := json.MarshalIndent(plan, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("plan is\n%s\nwant\n%s", got, want)
	}
}

func TestManyLayersAreOneDisk(t *testing.T) {
	layers := chain(t, t.TempDir(), 5)
	planner := newPlanner(t)
	for _, round := range []string{"made now", "from the cache"} {
		plan, err := planner.Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), layers...))
		if err != nil {
			t.Fatal(err)
		}
		if plan.Strategy != rootfs.StrategyMerged || !strings.HasSuffix(plan.Reason, round) {
			t.Errorf("strategy %s because %q, want merged, %s", plan.Strategy, plan.Reason, round)
		}
		if len(plan.Disks) != 2 || len(plan.Storages) != 2 {
			t.Fatalf("%d disks and %d storages, want 2 and 2", len(plan.Disks), len(plan.Storages))
		}
		checkExtents(t, plan.Disks[1], layers)
	}
}

// checkExtents wants an index and then the layers, oldest first, each as long
// as its superblock says.
func checkExtents(t *testing.T, disk rootfs.Disk, layers []string) {
	t.Helper()
	if len(disk.Extents) != len(layers)+1 {
		t.Fatalf("%d extents, want an index and %d layers", len(disk.Extents), len(layers))
	}
	bytes := int64(0)
	for i, e := range disk.Extents {
		image := erofstest.Inspect(t, e.Path)
		if i > 0 && e.Path != layers[i-1] {
			t.Errorf("extent %d is %s, want %s", i, e.Path, layers[i-1])
		}
		if e.Offset != 0 || e.Sectors*512 != image.Super.Bytes() {
			t.Errorf("extent %d is %+v, the image has %d bytes", i, e, image.Super.Bytes())
		}
		bytes += e.Sectors * 512
	}
	if disk.Bytes != bytes || !disk.ReadOnly || disk.Driver != rootfs.DriverVMDK || disk.Role != rootfs.RoleLayers {
		t.Errorf("disk is %+v, want %d read-only bytes of layers by vmdk", disk, bytes)
	}
}

func TestRefusalsCarryTheClassOfContainerd(t *testing.T) {
	_, err := newPlanner(t).Plan(deadline(t), nil)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("empty list: %v, want an invalid argument", err)
	}
	_, err = newPlanner(t).Plan(deadline(t), []rootfs.Mount{{Type: "bind", Source: "/x"}})
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("bind: %v, want not implemented", err)
	}
}
