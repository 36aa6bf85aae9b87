package rootfs_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
	"github.com/erofsvm/erofsvm/test/need"
)

// entry is an Entry of a given type.
func entry(typ byte, name string, change func(*erofstest.Entry)) erofstest.Entry {
	e := erofstest.Entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o644}}
	if typ == tar.TypeDir {
		e.Mode = 0o755
	}
	if change != nil {
		change(&e)
	}
	return e
}

// oddLayers are layers, oldest first, with everything that can go wrong when
// layers become one: deletions, replacements of one kind of file by another,
// opaque directories, links, attributes, devices, an empty layer.
func oddLayers(t *testing.T, dir string, layer func(testing.TB, string, string, []erofstest.Entry) string) []string {
	t.Helper()
	file, sub := erofstest.File, erofstest.Dir
	attr := func(key, value string) func(*erofstest.Entry) {
		return func(e *erofstest.Entry) {
			e.PAXRecords = map[string]string{"SCHILY.xattr." + key: value}
		}
	}
	link := func(to string) func(*erofstest.Entry) { return func(e *erofstest.Entry) { e.Linkname = to } }
	all := [][]erofstest.Entry{
		{
			sub("etc"), sub("opaque"), sub("opaque/below"), sub("gone"), sub("a-dir"), sub("dev"),
			file("etc/deleted", "deleted later"), file("etc/replaced", "old"), file("etc/kept", "kept"),
			file("opaque/hidden", "hidden"), file("opaque/below/hidden", "hidden"), file("gone/file", "x"), file("a-dir/x", "x"),
			file("a-file", "to be a directory"), file("empty", ""),
			file("big", strings.Repeat("0123456789abcdef", 1<<16)),
			entry(tar.TypeReg, "suid", func(e *erofstest.Entry) { e.Mode, e.Uid, e.Gid, e.Body = 0o4755, 0, 5, "suid" }),
			entry(tar.TypeReg, "attributes", attr("user.note", "first\x00value")),
			entry(tar.TypeReg, "capable", attr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")),
			file("linked-1", strings.Repeat("l", 5000)), entry(tar.TypeLink, "linked-2", link("linked-1")),
			file("both-1", strings.Repeat("b", 5000)), entry(tar.TypeLink, "both-2", link("both-1")),
			entry(tar.TypeSymlink, "symlink", link("etc/kept")), entry(tar.TypeFifo, "fifo", nil),
			entry(tar.TypeChar, "dev/null", func(e *erofstest.Entry) { e.Devmajor, e.Devminor = 1, 3 }),
			entry(tar.TypeBlock, "dev/block", func(e *erofstest.Entry) { e.Devmajor, e.Devminor = 259, 300 }),
			file("name with \n newline", "n"), file("Ümlaut", "u"), file(strings.Repeat("n", 255), "long"),
		},
		{}, // empty
		{
			sub("etc"), file("etc/.wh.deleted", ""), file("etc/replaced", "new and longer than it was before"), file(".wh.gone", ""),
			sub("opaque"), file("opaque/.wh..wh..opq", ""), file("opaque/seen", "seen"),
			file(".wh.a-dir", ""), file("a-file/inside", "a file became a directory"),
			entry(tar.TypeDir, "sticky", func(e *erofstest.Entry) { e.Mode, e.Uid, e.Gid = 0o1777, 1000, 1001 }),
		},
		{
			file("a-dir", "a directory became a file"), file("etc/deleted", "back again"),
			entry(tar.TypeReg, "attributes", attr("user.note", "second value")),
			file("linked-1", "no longer linked"), file("big", strings.Repeat("x", 3<<20+1)),
			entry(tar.TypeDir, "etc", func(e *erofstest.Entry) { e.Mode = 0o700 }),
		},
		{file("etc/.wh.replaced", ""), sub("opaque"), sub("opaque/below"), file("opaque/below/new", "new")},
	}
	var layers []string
	for i, entries := range all {
		layers = append(layers, layer(t, dir, fmt.Sprintf("odd-%d.erofs", i), entries))
	}
	return layers
}

// plain is a maker of plain layers.
func plain(t testing.TB, dir, name string, entries []erofstest.Entry) string {
	return erofstest.Layer(t, dir, name, entries)
}

// qemuReads is the disk as QEMU reads it, in a file.
func qemuReads(t *testing.T, disk rootfs.Disk) string {
	t.Helper()
	dir := t.TempDir()
	path, err := vmdk.WriteDisk(dir, "layers.vmdk", disk.Extents, disk.Generated)
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(dir, "raw")
	cmd := exec.Command(erofstest.Tool(t, "qemu/usr/bin/qemu-img"), "convert", "-f", "vmdk", "-O", "raw", path, raw)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return raw
}

// TestTheMergedDiskIsTheIndexAndTheLayers compares what QEMU reads byte for
// byte with the files.
func TestTheMergedDiskIsTheIndexAndTheLayers(t *testing.T) {
	layers := oddLayers(t, t.TempDir(), plain)
	plan, err := newPlanner(t).Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), layers...))
	if err != nil {
		t.Fatal(err)
	}
	disk := plan.Disks[1]
	var want []byte
	for _, e := range disk.Extents {
		want = append(want, read(t, e.Path)[:e.Sectors*512]...)
	}
	if got := read(t, qemuReads(t, disk)); !bytes.Equal(got, want) || int64(len(got)) != disk.Bytes {
		t.Errorf("QEMU reads %d bytes, the plan says %d, the files have %d; or they differ", len(got), disk.Bytes, len(want))
	}
}

// TestTheKernelSeesTheUnionOfTheLayers mounts what QEMU reads, and beside it
// the layers under an overlay, which is what the image means.
func TestTheKernelSeesTheUnionOfTheLayers(t *testing.T) {
	needMounts(t)
	layers := oddLayers(t, t.TempDir(), plain)
	upper := ext4Image(t, 1<<20)
	ready, err := newPlanner(t).Plan(deadline(t), blockMounts(upper, layers...))
	if err != nil {
		t.Fatal(err)
	}
	index := ready.Disks[1].Extents[0].Path

	fsmeta := func(path string, devices []string) rootfs.Mount {
		m := rootfs.Mount{Type: "erofs", Source: path, Options: []string{"ro", "loop"}}
		for _, d := range devices {
			m.Options = append(m.Options, "device="+d)
		}
		return m
	}
	withIndex := blockMounts(upper, layers[0])
	withIndex[1] = fsmeta(index, layers)

	lowest, err := newPlanner(t).Plan(deadline(t), blockMounts(upper, layers[:3]...))
	if err != nil {
		t.Fatal(err)
	}
	mixed := blockMounts(upper, layers[2:]...) // the lowest of them makes room for the index
	mixed[len(mixed)-2] = fsmeta(lowest.Disks[1].Extents[0].Path, layers[:3])

	upperIndex, err := newPlanner(t).Plan(deadline(t), blockMounts(upper, layers[1:4]...))
	if err != nil {
		t.Fatal(err)
	}
	middle := blockMounts(upper, layers[0], layers[1], layers[4])
	middle[2] = fsmeta(upperIndex.Disks[1].Extents[0].Path, layers[1:4])

	for name, mounts := range map[string][]rootfs.Mount{
		"layers merged here":          blockMounts(upper, layers...),
		"an index in the middle":      middle,
		"index that came ready-made":  withIndex,
		"layers above a ready index":  mixed,
		"the lowest two layers alone": blockMounts(upper, layers[:2]...),
	} {
		t.Run(name, func(t *testing.T) {
			below := layers
			if strings.Contains(name, "lowest two") {
				below = layers[:2]
			}
			plan, err := newPlanner(t).Plan(deadline(t), mounts)
			if err != nil {
				t.Fatal(err)
			}
			disk := qemuReads(t, plan.Disks[1])
			union := trees(t, below, []string{disk})
			want, got := union[0], union[1]
			// mkfs.erofs does not carry over the root itself. Where there is
			// an upper layer, its directory stands for the root.
			if !strings.HasPrefix(got[0], `"." drwxrwxrwx 0:0`) {
				t.Errorf("the root is %s; is the warning of the plan still right?", got[0])
			}
			if !slices.Equal(got[1:], want[1:]) {
				t.Errorf("merged:\n%s\noverlay:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// needMounts is for a test that mounts layers.
func needMounts(t *testing.T) {
	t.Helper()
	need.Root(t, "to mount")
	known := string(read(t, "/proc/filesystems"))
	for _, fs := range []string{"erofs", "overlay"} {
		if !strings.Contains(known, "\t"+fs+"\n") {
			need.Missing(t, "the kernel has no %s", fs)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		need.Missing(t, "no loop devices: %v", err)
	}
}

// trees lists what each stack of images shows, an image by itself and several
// under an overlay; the oldest is the first. The mounts are made in a namespace
// of a thread that ends with them.
func trees(t *testing.T, stacks ...[]string) [][]string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mnt") // short: an option page holds all layers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var all [][]string
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked, so that the thread ends
		if err := privateMounts(); err != nil {
			t.Error(err)
			return
		}
		for n, images := range stacks {
			at, err := mountStack(fmt.Sprintf("%s/%d", dir, n), images)
			if err != nil {
				t.Errorf("stack %d: %v", n, err)
				return
			}
			all = append(all, erofstest.Tree(t, at))
		}
	}()
	<-done
	if t.Failed() {
		t.FailNow()
	}
	return all
}

// mountStack mounts the images below prefix and returns where their union is.
func mountStack(prefix string, images []string) (string, error) {
	var lowers []string
	for i, image := range slices.Backward(images) {
		at := fmt.Sprintf("%s-%d", prefix, i)
		if err := mountImage(image, at); err != nil {
			return "", fmt.Errorf("%s: %w", image, err)
		}
		lowers = append(lowers, at)
	}
	if len(lowers) == 1 {
		return lowers[0], nil
	}
	union := prefix + "-union"
	if err := os.Mkdir(union, 0o700); err != nil {
		return "", err
	}
	return union, unix.Mount("overlay", union, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":"))
}

func privateMounts() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

func mountImage(image, at string) error {
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	loop, err := mount.SetupLoop(image, mount.LoopParams{Readonly: true, Autoclear: true})
	if err != nil {
		return err
	}
	defer loop.Close()
	return unix.Mount(loop.Name(), at, "erofs", unix.MS_RDONLY, "")
}
