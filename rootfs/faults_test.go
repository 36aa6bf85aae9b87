package rootfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/merge"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
	"github.com/erofsvm/erofsvm/test/need"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestABrokenFileIsRefusedByName breaks one file of a chain at a time: the
// single layer of an image, a layer among others, a device of an index, the
// index itself, the writable image.
func TestABrokenFileIsRefusedByName(t *testing.T) {
	cut := func(n int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.Truncate(path, info.Size()-n))
		}
	}
	faults := map[string]struct {
		fault func(*testing.T, string)
		erofs error // what is reported of an EROFS image
		ext4  string
	}{
		"missing":     {func(t *testing.T, p string) { must(t, os.Remove(p)) }, os.ErrNotExist, "no such file"},
		"empty":       {func(t *testing.T, p string) { must(t, os.Truncate(p, 0)) }, erofs.ErrEmpty, "empty"},
		"truncated":   {cut(512), erofs.ErrTruncated, "truncated"},
		"not aligned": {cut(1), erofs.ErrTruncated, "multiple of 512"},
		"other file":  {func(t *testing.T, p string) { write(t, p, make([]byte, 8192)) }, erofs.ErrNotEROFS, "not ext4"},
		"a directory": {func(t *testing.T, p string) { must(t, errors.Join(os.Remove(p), os.Mkdir(p, 0o700))) }, erofs.ErrNotRegular, "not a regular file"},
		"a FIFO":      {func(t *testing.T, p string) { must(t, errors.Join(os.Remove(p), syscall.Mkfifo(p, 0o600))) }, erofs.ErrNotRegular, "not a regular file"},
	}
	type files struct {
		upper  string
		layers []string
		index  string // of all layers
	}
	places := map[string]struct {
		victim func(files) string
		mounts func(files) []rootfs.Mount
	}{
		"only layer":     {func(f files) string { return f.layers[0] }, func(f files) []rootfs.Mount { return blockMounts(f.upper, f.layers[0]) }},
		"middle layer":   {func(f files) string { return f.layers[1] }, func(f files) []rootfs.Mount { return blockMounts(f.upper, f.layers...) }},
		"device":         {func(f files) string { return f.layers[1] }, func(f files) []rootfs.Mount { return indexMounts(f.upper, f.index, f.layers...) }},
		"index":          {func(f files) string { return f.index }, func(f files) []rootfs.Mount { return indexMounts(f.upper, f.index, f.layers...) }},
		"writable image": {func(f files) string { return f.upper }, func(f files) []rootfs.Mount { return blockMounts(f.upper, f.layers...) }},
	}
	for where, place := range places {
		for what, c := range faults {
			t.Run(where+" "+what, func(t *testing.T) {
				dir := t.TempDir()
				f := files{upper: ext4Image(t, 1<<20), layers: chain(t, dir, 3), index: filepath.Join(dir, "index.erofs")}
				makeIndex(t, f.index, f.layers)
				victim := place.victim(f)
				c.fault(t, victim)
				plan, err := newPlanner(t).Plan(deadline(t), place.mounts(f))
				if err == nil {
					t.Fatalf("planned as %+v", plan)
				}
				want, words := c.erofs, ""
				if victim == f.upper {
					want, words = rootfs.ErrUpper, c.ext4
				}
				if what == "missing" {
					want = os.ErrNotExist
				}
				if !errors.Is(err, want) || !strings.Contains(err.Error(), victim) || !strings.Contains(err.Error(), words) {
					t.Errorf("%v, want %v %s with the name %s", err, want, words, victim)
				}
			})
		}
	}
}

// makeIndex puts an index of the layers at path, exactly as mkfs.erofs makes
// it.
func makeIndex(t testing.TB, path string, layers []string) {
	t.Helper()
	var images []*erofs.Image
	for _, l := range layers {
		images = append(images, erofstest.Inspect(t, l))
	}
	made, err := merge.New(erofstest.Mkfs(t), t.TempDir(), 0).Fsmeta(deadline(t), images)
	must(t, err)
	defer made.Meta.Close()
	write(t, path, read(t, made.Meta.Path)[:made.Meta.Super.Bytes()])
}

// indexMounts is what containerd hands over where an index stands for the
// layers, oldest first.
func indexMounts(upper, index string, layers ...string) []rootfs.Mount {
	mounts := blockMounts(upper, index)
	for _, l := range layers {
		mounts[1].Options = append(mounts[1].Options, "device="+l)
	}
	return mounts
}

func TestAnIndexThatDoesNotFitItsLayersIsRefused(t *testing.T) {
	dir := t.TempDir()
	layers := chain(t, dir, 3)
	index := filepath.Join(dir, "index.erofs")
	makeIndex(t, index, layers)
	other := erofstest.Layer(t, dir, "other.erofs", []erofstest.Entry{erofstest.File("x", "x")})
	small := erofstest.Layer(t, dir, "small.erofs", []erofstest.Entry{erofstest.File("x", "x")}, "-b1024")
	reversed := slices.Clone(layers)
	slices.Reverse(reversed)
	for name, devices := range map[string][]string{
		"wrong order":      reversed,
		"another layer":    {layers[0], other, layers[2]},
		"another size":     {layers[0], small, layers[2]},
		"one too few":      layers[:2],
		"one too many":     append(slices.Clone(layers), other),
		"an index in it":   {layers[0], index, layers[2]},
		"the same one all": {layers[0], layers[0], layers[0]},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newPlanner(t).Plan(deadline(t), indexMounts("/none", index, devices...))
			if !errors.Is(err, erofs.ErrMismatch) || !strings.Contains(err.Error(), index) {
				t.Errorf("%v, want %v and the name of the index", err, erofs.ErrMismatch)
			}
		})
	}
	t.Run("no device", func(t *testing.T) {
		_, err := newPlanner(t).Plan(deadline(t), blockMounts("/none", index))
		if err == nil || classOf(t, err) != rootfs.ClassNoDevices {
			t.Errorf("%v, want class %s", err, rootfs.ClassNoDevices)
		}
	})
}

func TestPathsThatADescriptorCannotHoldAreRefused(t *testing.T) {
	dir := t.TempDir()
	layers := chain(t, dir, 2)
	for name, path := range map[string]string{
		"quotation mark": filepath.Join(dir, `a"b`),
		"512 bytes":      dir + "/" + strings.Repeat("d", 200) + "/" + strings.Repeat("d", 512-len(dir)-202),
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.MkdirAll(filepath.Dir(path), 0o700))
			must(t, os.Link(layers[1], path))
			_, err := newPlanner(t).Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), layers[0], path))
			if !errors.Is(err, vmdk.ErrPath) || !strings.Contains(err.Error(), fmt.Sprintf("%q", path)) {
				t.Errorf("%v, want %v with the path", err, vmdk.ErrPath)
			}
		})
	}
	t.Run("line feed", func(t *testing.T) {
		_, err := newPlanner(t).Plan(deadline(t), blockMounts("/none", layers[0], "/a\nRW 1 FLAT"))
		if err == nil || classOf(t, err) != rootfs.ClassInvalid {
			t.Errorf("%v, want class %s", err, rootfs.ClassInvalid)
		}
	})
}

func TestLayersOfDifferentBlockSizesAreRefused(t *testing.T) {
	dir := t.TempDir()
	small := erofstest.Layer(t, dir, "small.erofs", []erofstest.Entry{erofstest.File("x", "x")}, "-b1024")
	_, err := newPlanner(t).Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), chain(t, dir, 1)[0], small))
	if !errors.Is(err, merge.ErrIneligible) || !strings.Contains(err.Error(), small) {
		t.Errorf("%v, want %v with the name of the layer", err, merge.ErrIneligible)
	}
}

// TestALayerWithATailKeepsTheOthersInPlace appends to a layer what dm-verity
// would: the extent must end with the filesystem.
func TestALayerWithATailKeepsTheOthersInPlace(t *testing.T) {
	layers := chain(t, t.TempDir(), 3)
	for _, l := range layers {
		write(t, l, append(read(t, l), make([]byte, 4096*3)...))
	}
	plan, err := newPlanner(t).Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), layers...))
	must(t, err)
	checkExtents(t, plan.Disks[1], layers)
}

func TestReadOnlyViewsHaveNoUpper(t *testing.T) {
	layers := chain(t, t.TempDir(), 2)
	lower := func(path string) rootfs.Mount {
		return rootfs.Mount{Type: "erofs", Source: path, Options: []string{"ro", "loop"}}
	}
	for name, mounts := range map[string][]rootfs.Mount{
		"one layer": {lower(layers[0])},
		"overlay": {lower(layers[1]), lower(layers[0]), {
			Type: "format/mkdir/overlay", Source: "overlay", Options: []string{"ro", "lowerdir={{ overlay 0 1 }}"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := newPlanner(t).Plan(deadline(t), mounts)
			must(t, err)
			if len(plan.Disks) != 1 || len(plan.Storages) != 1 || !plan.Disks[0].ReadOnly {
				t.Errorf("%+v, want one read-only disk and its storage", plan)
			}
		})
	}
}

func TestPlansOfOneImageAtOnceShareTheIndex(t *testing.T) {
	layers := chain(t, t.TempDir(), 4)
	upper := ext4Image(t, 1<<20)
	planner, ctx := newPlanner(t), deadline(t)
	const containers = 8
	plans := make([]*rootfs.Plan, containers)
	errs := make([]error, containers)
	var wg sync.WaitGroup
	for i := range containers {
		wg.Go(func() { plans[i], errs[i] = planner.Plan(ctx, blockMounts(upper, layers...)) })
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	for i, p := range plans {
		if !slices.Equal(p.Disks[1].Extents, plans[0].Disks[1].Extents) {
			t.Errorf("plan %d has %v, plan 0 %v", i, p.Disks[1].Extents, plans[0].Disks[1].Extents)
		}
	}
}

// TestARealWritableImageIsTaken has the images that mkfs.ext4 makes of the
// sizes that containerd asks for, with small and with usual blocks.
func TestARealWritableImageIsTaken(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		need.Missing(t, "no mkfs.ext4: %v", err)
	}
	layer := chain(t, t.TempDir(), 1)[0]
	for _, size := range []int64{4 << 20, 64 << 20, 64<<20 + 512, 5 << 30} {
		image := filepath.Join(t.TempDir(), "rwlayer.img")
		write(t, image, nil)
		must(t, os.Truncate(image, size))
		if out, err := exec.Command(mkfs, "-q", image).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		plan, err := newPlanner(t).Plan(deadline(t), blockMounts(image, layer))
		if err != nil {
			t.Errorf("%d bytes: %v", size, err)
			continue
		}
		if d := plan.Disks[0]; d.Bytes != size || d.ReadOnly || d.Path != image {
			t.Errorf("%d bytes: disk is %+v", size, d)
		}
		must(t, os.Truncate(image, size/2))
		if _, err := newPlanner(t).Plan(deadline(t), blockMounts(image, layer)); !errors.Is(err, rootfs.ErrUpper) {
			t.Errorf("%d bytes, half of it lost: %v", size, err)
		}
	}
}

// TestALayerOfAnyLengthIsTaken has layers with something behind the filesystem
// that ends within a sector, where a disk cannot, and layers by symbolic links.
func TestALayerOfAnyLengthIsTaken(t *testing.T) {
	dir := t.TempDir()
	upper, layers := ext4Image(t, 1<<20), chain(t, dir, 3)
	for i, l := range layers {
		write(t, l, append(read(t, l), make([]byte, 700+i)...))
		link := filepath.Join(dir, fmt.Sprintf("link-%d", i))
		must(t, os.Symlink(l, link))
		layers[i] = link
	}
	plan, err := newPlanner(t).Plan(deadline(t), blockMounts(upper, layers...))
	must(t, err)
	checkExtents(t, plan.Disks[1], layers)

	plan, err = newPlanner(t).Plan(deadline(t), blockMounts(upper, layers[0]))
	must(t, err)
	image := erofstest.Inspect(t, layers[0])
	want := []vmdk.Extent{{Path: layers[0], Sectors: image.Super.Bytes() / 512}}
	if d := plan.Disks[1]; d.Driver != rootfs.DriverVMDK || !slices.Equal(d.Extents, want) || d.Bytes != image.Super.Bytes() || plan.Strategy != rootfs.StrategyRaw {
		t.Errorf("one layer is %+v, want %+v", d, want)
	}
}

// TestALayerPast4GiBIsPlannedToItsEnd has a sparse layer with marks on either
// side of 2 and 4 GiB and at its end, raw and in a partition behind another,
// each read by QEMU.
func TestALayerPast4GiBIsPlannedToItsEnd(t *testing.T) {
	const blocks = 5 << 30 / 4096
	dir := t.TempDir()
	small, big := chain(t, dir, 1)[0], filepath.Join(dir, "big.erofs")
	head := read(t, small)[:2048]
	binary.LittleEndian.PutUint32(head[1024+36:], blocks)
	write(t, big, head)
	marks := []int64{2<<30 - 512, 2 << 30, 4<<30 - 512, 4 << 30, blocks*4096 - 512}
	f, err := os.OpenFile(big, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(blocks*4096))
	for i, at := range marks {
		_, err := f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 512), at)
		must(t, err)
	}
	planner := plannerWith(t, func(o *rootfs.Options) { o.Layers = rootfs.LayersPartition })
	for name, layers := range map[string][]string{"raw": {big}, "in a partition": {big, small}} {
		t.Run(name, func(t *testing.T) {
			plan, err := planner.Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), layers...))
			must(t, err)
			disk, start := plan.Disks[1], int64(0)
			path := disk.Path
			if disk.Driver == rootfs.DriverVMDK {
				start = disk.Partitions[1].Start * 512
				path, err = vmdk.WriteDisk(t.TempDir(), "layers.vmdk", disk.Extents, disk.Generated)
				must(t, err)
			}
			args := []string{"-r", "-f", string(disk.Driver)}
			for i, at := range marks {
				args = append(args, "-c", fmt.Sprintf("read -P %d %d 512", i+1, start+at))
			}
			out, err := exec.Command(erofstest.Tool(t, "qemu/usr/bin/qemu-io"), append(args, path)...).CombinedOutput()
			if n := bytes.Count(out, []byte("read 512/512")); err != nil || n != len(marks) || bytes.Contains(out, []byte("failed")) {
				t.Errorf("%v, qemu-io says\n%s", err, out)
			}
		})
	}
}
