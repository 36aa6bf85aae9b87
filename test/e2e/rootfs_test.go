package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// listDisks prints one line for each disk of the guest but its own memory:
// name, 1 if read-only, size in sectors, serial.
const listDisks = `for d in /sys/block/*; do
  case $d in */ram*|*/loop*|*/zram*) continue;; esac
  echo disk $(basename $d) $(cat $d/ro) $(cat $d/size) $(cat $d/serial)
done; echo listed`

// guestDisks runs a container that lists the disks of its guest.
func guestDisks(t *testing.T, bed *e2etest.Bed, image string) (disks [][]string, trace *harness.Trace) {
	t.Helper()
	c, code := bed.Run(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", listDisks}})
	if code != 0 || !strings.Contains(c.Stdout.String(), "listed") {
		t.Fatalf("code %d\n%s%s", code, c.Stdout, c.Stderr)
	}
	for line := range strings.Lines(c.Stdout.String()) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "disk" {
			disks = append(disks, fields[1:])
		}
	}
	trace, err := bed.Trace(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	return disks, trace
}

// disk finds the trace's only disk of a role.
func disk(t *testing.T, trace *harness.Trace, role string) harness.TraceDisk {
	t.Helper()
	var found []harness.TraceDisk
	for _, d := range trace.Disks {
		if d.Role == role {
			found = append(found, d)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d disks with the role %s, want one: %+v", len(found), role, trace.Disks)
	}
	return found[0]
}

// expectTwoDisks: whatever the image, the guest has one read-only disk with its
// layers and one writable, of the sizes that the host gave them.
func expectTwoDisks(t *testing.T, disks [][]string, trace *harness.Trace) {
	t.Helper()
	if len(disks) != 2 {
		t.Fatalf("the guest has %d disks, want 2: %q", len(disks), disks)
	}
	want := map[string]bool{
		fmt.Sprint("1 ", disk(t, trace, "layers").Bytes/512): true,
		fmt.Sprint("0 ", disk(t, trace, "upper").Bytes/512):  true,
	}
	for _, d := range disks {
		if seen := d[1] + " " + d[2]; !want[seen] {
			t.Errorf("disk %s is %q (read-only, sectors), want one of %v", d[0], seen, want)
		}
	}
}

func TestASingleLayerIsItsOwnDisk(t *testing.T) {
	bed := e2etest.Newest(t)
	disks, trace := guestDisks(t, bed, bed.Image(t, "one", harness.Snapshotter))
	expectTwoDisks(t, disks, trace)
	layers, upper := disk(t, trace, "layers"), disk(t, trace, "upper")
	if trace.Strategy != "raw" || layers.Driver != "raw" || !layers.ReadOnly || filepath.Base(layers.Path) != "layer.erofs" {
		t.Errorf("strategy %s, layers %+v: want the blob itself, read-only", trace.Strategy, layers)
	}
	if upper.Driver != "raw" || upper.ReadOnly || filepath.Base(upper.Path) != "rwlayer.img" {
		t.Errorf("upper %+v: want rwlayer.img, raw, writable", upper)
	}
	if trace.Descriptor != "" {
		t.Errorf("a raw disk has a descriptor:\n%s", trace.Descriptor)
	}
}

func TestManyLayersAreOneDisk(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "first-light", harness.Snapshotter)
	disks, trace := guestDisks(t, bed, image)
	expectTwoDisks(t, disks, trace)
	layers := disk(t, trace, "layers")
	if trace.Strategy != "merged" || layers.Driver != "vmdk" || !layers.ReadOnly {
		t.Fatalf("strategy %s, layers %+v: want one read-only vmdk", trace.Strategy, layers)
	}
	parents := layerFiles(t, bed, image)
	if len(parents) < 12 {
		t.Errorf("the image has %d layers, want at least 12", len(parents))
	}
	expectExtents(t, layers, parents)
	expectDescriptor(t, trace.Descriptor, layers)
	if upper := disk(t, trace, "upper"); upper.Driver != "raw" || upper.ReadOnly {
		t.Errorf("upper %+v: want raw and writable", upper)
	}
}

// TestAReadyMadeFsmetaIsUsedAsItIs: one that lies beside the top layer reaches
// the shim with device= options, and its file is the disk's first extent.
func TestAReadyMadeFsmetaIsUsedAsItIs(t *testing.T) {
	bed := e2etest.Own(t, harness.Options{})
	image := bed.Image(t, "two", harness.Snapshotter)
	parents := layerFiles(t, bed, image) // newest first
	fsmeta := filepath.Join(filepath.Dir(parents[0]), "fsmeta.erofs")
	args := []string{"--aufs", "--ovlfs-strip=1", "--quiet", fsmeta}
	for i := len(parents) - 1; i >= 0; i-- {
		args = append(args, parents[i])
	}
	if out, err := exec.Command(bed.Tree.MkfsErofs(), args...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	disks, trace := guestDisks(t, bed, image)
	expectTwoDisks(t, disks, trace)
	layers := disk(t, trace, "layers")
	if len(layers.Extents) == 0 || layers.Extents[0].Path != fsmeta {
		t.Fatalf("extents %+v: want %s first", layers.Extents, fsmeta)
	}
	expectExtents(t, layers, parents)
	if err := filepath.WalkDir(bed.CacheDir(), func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".erofs" {
			t.Errorf("the shim has built an fsmeta of its own: %s", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// layerFiles are the blobs of an image's layers, newest first, as the mounts of
// a snapshot on it name them.
func layerFiles(t *testing.T, bed *e2etest.Bed, ref string) []string {
	t.Helper()
	return erofsSources(prepare(t, bed, ref, "look"))
}

// prepare makes a snapshot on an image, which is removed when the test is over, and
// returns its mounts.
func prepare(t *testing.T, bed *e2etest.Bed, ref, key string) []mount.Mount {
	t.Helper()
	ctx, cancel := context.WithTimeout(bed.Context(context.Background()), e2etest.Boot)
	t.Cleanup(cancel)
	image, err := bed.Client().GetImage(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := image.RootFS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	service := bed.Client().SnapshotService(harness.Snapshotter)
	mounts, err := service.Prepare(ctx, key, identity.ChainID(ids).String(), snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := service.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) { // it can be committed
			t.Errorf("remove snapshot %s: %v", key, err)
		}
	})
	return mounts
}

func erofsSources(mounts []mount.Mount) []string {
	var files []string
	for _, m := range mounts {
		if m.Type == "erofs" {
			files = append(files, m.Source)
		}
	}
	return files
}

// expectExtents holds the disk's extents against the layers and the fsmeta's
// own device table, read here anew: the fsmeta first, then each layer once,
// oldest first, as long as the table says.
func expectExtents(t *testing.T, layers harness.TraceDisk, newestFirst []string) {
	t.Helper()
	if len(layers.Extents) != 1+len(newestFirst) {
		t.Fatalf("%d extents for an fsmeta and %d layers", len(layers.Extents), len(newestFirst))
	}
	meta, err := os.ReadFile(layers.Extents[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	// fs/erofs/erofs_fs.h: the superblock is at 1024; blkszbits at 12, blocks
	// at 36, extra_devices at 86, devt_slotoff at 88; slots of 128 bytes.
	super := meta[1024:]
	perBlock := int64(1) << super[12] / 512
	own := int64(binary.LittleEndian.Uint32(super[36:])) * perBlock
	count := int(binary.LittleEndian.Uint16(super[86:]))
	slots := int(binary.LittleEndian.Uint16(super[88:])) * 128
	if count != len(newestFirst) {
		t.Fatalf("the fsmeta has %d devices for %d layers", count, len(newestFirst))
	}
	total := layers.Extents[0].Sectors
	if total != own || layers.Extents[0].Offset != 0 {
		t.Errorf("the fsmeta's extent is %+v, its own blocks are %d sectors", layers.Extents[0], own)
	}
	for i := range count {
		slot := meta[slots+128*i:]
		want := int64(binary.LittleEndian.Uint32(slot[64:])) * perBlock
		extent := layers.Extents[1+i]
		if extent.Sectors != want || extent.Offset != 0 {
			t.Errorf("extent %d is %+v, the device table says %d sectors", 1+i, extent, want)
		}
		if file := newestFirst[count-1-i]; !sameFile(t, extent.Path, file) {
			t.Errorf("extent %d is %s, the layer is %s", 1+i, extent.Path, file)
		}
		if tag, uuid := string(bytes.TrimRight(slot[:64], "\x00")), layerUUID(t, extent.Path); tag != uuid {
			t.Errorf("device %d is tagged %s, its layer has the UUID %s", i, tag, uuid)
		}
		total += extent.Sectors
	}
	if total*512 != layers.Bytes {
		t.Errorf("the extents are %d bytes, the disk %d", total*512, layers.Bytes)
	}
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	infoA, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	infoB, err := os.Stat(b)
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(infoA, infoB)
}

// layerUUID is the UUID in a layer's superblock, in hex: erofs_fs.h has it at
// offset 48.
func layerUUID(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	uuid := make([]byte, 16)
	if _, err := f.ReadAt(uuid, 1024+48); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(uuid)
}

// expectDescriptor: the text that QEMU read has a line for each extent.
func expectDescriptor(t *testing.T, text string, layers harness.TraceDisk) {
	t.Helper()
	if !strings.HasPrefix(text, "# Disk DescriptorFile\n") || !strings.Contains(text, `createType="twoGbMaxExtentFlat"`) {
		t.Errorf("not a descriptor of flat extents:\n%s", text)
	}
	for _, e := range layers.Extents {
		if line := fmt.Sprintf("RW %d FLAT %q %d\n", e.Sectors, e.Path, e.Offset); !strings.Contains(text, line) {
			t.Errorf("the descriptor has no line %q:\n%s", line, text)
		}
	}
}
