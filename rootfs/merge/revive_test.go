package merge_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/merge"
)

// stack makes layers of which each has the entries, the oldest first: "d/" is a
// directory, everything else a file, without content if it marks a deletion.
func stack(t *testing.T, layers ...[]string) []string {
	t.Helper()
	dir := t.TempDir()
	var paths []string
	for i, names := range layers {
		var entries []erofstest.Entry
		for _, name := range names {
			dir, isDir := strings.CutSuffix(name, "/")
			switch {
			case isDir:
				entries = append(entries, erofstest.Dir(dir))
			case strings.Contains(name, ".wh."):
				entries = append(entries, erofstest.File(name, ""))
			default:
				entries = append(entries, erofstest.File(name, "layer "+fmt.Sprint(i)))
			}
		}
		paths = append(paths, erofstest.Layer(t, dir, fmt.Sprintf("%d.erofs", i), entries))
	}
	return paths
}

// tree lists what an image has, directories with a slash.
func tree(t *testing.T, image *erofs.Image) []string {
	t.Helper()
	var devices []goerofs.OpenOpt
	for range image.Super.Devices {
		devices = append(devices, goerofs.WithExtraDevices(strings.NewReader("")))
	}
	fsys, err := goerofs.Open(image, devices...)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	err = fs.WalkDir(fsys, ".", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || path == ".":
		case e.IsDir():
			names = append(names, path+"/")
		default:
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// revived is the least set of layers in which a directory comes back.
var revived = [][]string{{"a/", "a/old"}, {"a"}, {"a/", "a/new"}}

func TestWhatMkfsWouldBringBackIsNotMerged(t *testing.T) {
	for name, layers := range map[string][][]string{
		"a file over a directory":     revived,
		"and more files over it":      {{"a/", "a/old"}, {"a"}, {"a"}, {"other"}, {"a/"}},
		"deep below":                  {{"x/", "x/y/", "x/y/a/", "x/y/a/old"}, {"x/", "x/y/", "x/y/a"}, {"x/", "x/y/", "x/y/a/"}},
		"above a directory that is":   {{"base"}, {"a/"}, {"b/"}, {"a"}, {"c/"}, {"a/", "a/new"}},
		"gone and made, then covered": {{"a/", "a/old"}, {".wh.a"}, {"a/"}, {"a"}, {"a/"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := merge.New(erofstest.Mkfs(t), t.TempDir(), 0)
			_, err := fsmeta(t, b, inspect(t, stack(t, layers...)...))
			if !errors.Is(err, merge.ErrIneligible) || !strings.Contains(fmt.Sprint(err), "a directory in") {
				t.Errorf("want a refusal that names the directory: %v", err)
			}
		})
	}
}

func TestWhatMkfsMergesRightlyIsMerged(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]string
		want   []string
	}{
		"a file over a directory":          {[][]string{{"a/", "a/old"}, {"a"}}, []string{"a"}},
		"a directory over a file":          {[][]string{{"a"}, {"a/", "a/new"}}, []string{"a/", "a/new"}},
		"a file between, then a whiteout":  {[][]string{{"a/", "a/old"}, {"a"}, {".wh.a", "b"}, {"a/", "a/new"}}, []string{"a/", "a/new", "b"}},
		"a file between, then opaque":      {[][]string{{"a/", "a/old"}, {"a"}, {"a/", "a/.wh..wh..opq", "a/new"}}, []string{"a/", "a/new"}},
		"a whiteout between":               {[][]string{{"a/", "a/old"}, {".wh.a", "b"}, {"a/", "a/new"}}, []string{"a/", "a/new", "b"}},
		"opaque, then a directory":         {[][]string{{"a/", "a/old"}, {"a/", "a/.wh..wh..opq"}, {"a/", "a/new"}}, []string{"a/", "a/new"}},
		"below what was covered":           {[][]string{{"a/", "a/b/", "a/b/old"}, {"a"}, {".wh.a", "c"}, {"a/", "a/b/", "a/b/new"}}, []string{"a/", "a/b/", "a/b/new", "c"}},
		"a file where there was a deleted": {[][]string{{"a/", "a/old"}, {".wh.a", "b"}, {"a"}, {"a/", "a/new"}}, []string{"a/", "a/new", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := merge.New(erofstest.Mkfs(t), t.TempDir(), 0)
			got, err := fsmeta(t, b, inspect(t, stack(t, c.layers...)...))
			if err != nil {
				t.Fatal(err)
			}
			if names := tree(t, got.Meta); !slices.Equal(names, c.want) {
				t.Errorf("merged: %q, want %q", names, c.want)
			}
		})
	}
}

// TestMkfsBringsBackADirectory is why such layers are not merged. Once it fails,
// there is a version of mkfs.erofs that can be let do it.
func TestMkfsBringsBackADirectory(t *testing.T) {
	out := filepath.Join(t.TempDir(), "fsmeta.erofs")
	args := append([]string{"--aufs", "--ovlfs-strip=1", "--quiet", out}, stack(t, revived...)...)
	if text, err := exec.CommandContext(deadline(t), erofstest.Mkfs(t), args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if names := tree(t, erofstest.Inspect(t, out)); !slices.Contains(names, "a/old") {
		t.Errorf("it merges rightly now: %q", names)
	}
}

// TestLayersAreLookedThroughWithinBounds: a directory of a hostile image can be
// its own child.
func TestLayersAreLookedThroughWithinBounds(t *testing.T) {
	paths := stack(t, []string{"a/", "a/b/"}, []string{"a/", "a/b/"})
	loop(t, paths[1])
	b := merge.New(erofstest.Mkfs(t), t.TempDir(), 0)
	_, err := fsmeta(t, b, inspect(t, paths...))
	if !errors.Is(err, merge.ErrIneligible) || !strings.Contains(fmt.Sprint(err), paths[1]) {
		t.Errorf("want a refusal that names the layer: %v", err)
	}
}

// loop makes the directory a/b of an image a/b itself once more: the dirents of
// "a", 12 bytes each with the inode's number first, stand before its names
// (fs/erofs/erofs_fs.h, struct erofs_dirent).
func loop(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	names := bytes.Index(data, []byte("...b"))
	if names < 36 {
		t.Fatal("the directory is not found")
	}
	dirents := data[names-36:]
	copy(dirents[24:32], dirents[:8])
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
