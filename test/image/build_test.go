package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// fakeInputs are a base of a few files and packages of one file each: the
// layers above them are the real ones.
func fakeInputs(t *testing.T) Inputs {
	t.Helper()
	in := Inputs{Base: t.TempDir(), Out: filepath.Join(t.TempDir(), "images")}
	put := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(in.Base, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		// The key has the time of a file in it.
		if err := os.Chtimes(path, clock, clock); err != nil {
			t.Fatal(err)
		}
		return path
	}
	put("rootfs.tar", tarOf(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin"},
		tar.Header{Name: "./usr/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o751, Uid: 7},
		tar.Header{Name: "./usr/bin/base", Typeflag: tar.TypeReg, Mode: 0o755},
		tar.Header{Name: "./etc/debian_version", Typeflag: tar.TypeReg, Mode: 0o644}))
	var layers bytes.Buffer
	for _, name := range packages {
		file := name + "_1%3a2.0_all.deb"
		fmt.Fprintln(&layers, name, file)
		program := strings.TrimSuffix(name, "-static")
		put("debs/"+file, debOf("data.tar", tarOf(t,
			tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
			tar.Header{Name: "./bin/", Typeflag: tar.TypeDir, Mode: 0o700},
			tar.Header{Name: "./bin/" + program, Typeflag: tar.TypeReg, Mode: 0o755, Uname: "builder"})))
	}
	put("debs/layers", layers.Bytes())
	in.TreeList = put("tree-list", []byte("a program"))
	return in
}

// tarOf is an archive of entries, files being empty.
func tarOf(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// debOf is a Debian package whose data member has the given name and content.
func debOf(member string, data []byte) []byte {
	var out bytes.Buffer
	out.WriteString(arMagic)
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", []byte("odd")}, {member, data}} {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8o%-10d%s", m.name, 0, 0, 0, 0o100644, len(m.data), arEnd)
		out.Write(m.data)
		if len(m.data)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

func TestSameInputsGiveSameDigests(t *testing.T) {
	first, err := Build(fakeInputs(t))
	if err != nil {
		t.Fatal(err)
	}
	second, err := Build(fakeInputs(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range first.Images {
		a, b := first.Images[i], second.Images[i]
		if a.Digest != b.Digest || a.Bytes != b.Bytes {
			t.Errorf("%s: %s and %s", a.Name, a.Digest, b.Digest)
		}
		for j := range a.Layers {
			if a.Layers[j] != b.Layers[j] {
				t.Errorf("%s: %+v and %+v", a.Name, a.Layers[j], b.Layers[j])
			}
		}
	}
}

func TestSecondBuildFindsTheFirst(t *testing.T) {
	in := fakeInputs(t)
	first, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	build := func(why string, cached bool) {
		t.Helper()
		s, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		if s.Cached != cached {
			t.Errorf("%s: cached is %v", why, s.Cached)
		}
		if s.Images[0].Digest != first.Images[0].Digest {
			t.Errorf("%s: another digest", why)
		}
	}
	build("nothing has changed", true)
	if err := os.Truncate(Archive(in.Out, One), 5); err != nil {
		t.Fatal(err)
	}
	build("an archive is cut off", false)
	if err := os.Chtimes(filepath.Join(in.Base, "rootfs.tar"), time.Time{}, clock.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	build("the base has another time", false)
	if left, _ := filepath.Glob(filepath.Join(in.Out, ".*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestFirstLightHasEveryDifficulty holds the image to the list of what it is
// for; the archive is read by others' code.
func TestFirstLightHasEveryDifficulty(t *testing.T) {
	in := fakeInputs(t)
	if _, err := Build(in); err != nil {
		t.Fatal(err)
	}
	images := map[string]v1.Image{}
	for _, name := range []string{FirstLight, One, Two, Pause} {
		images[name] = openArchive(t, Archive(in.Out, name), name)
	}
	layers, err := images[FirstLight].Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) < 12 {
		t.Errorf("%d layers, want at least 12", len(layers))
	}
	seen := map[string]bool{}
	below := map[string]bool{}
	media := map[types.MediaType]bool{}
	for _, l := range layers {
		mediaType, err := l.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		media[mediaType] = true
		entries := readLayer(t, l)
		if len(entries) == 0 {
			seen["empty layer"] = true
		}
		listed := map[string]bool{".": true}
		for _, h := range entries {
			name := cleanName(h.Name)
			if dir := filepath.Dir(name); !listed[dir] {
				t.Errorf("%q comes before its directory", name)
			}
			if h.Typeflag == tar.TypeDir {
				listed[name] = true
			}
			difficulties(h, below, seen)
		}
		for _, h := range entries {
			below[cleanName(h.Name)] = true
		}
	}
	for _, want := range []string{
		"deleted", "opaque", "replaced", "hard link", "symbolic link", "user xattr", "capability", "setuid", "device", "fifo",
		"over 100 MB", "0 bytes", "odd name", "odd owner", "empty layer",
	} {
		if !seen[want] {
			t.Errorf("no layer has: %s", want)
		}
	}
	if !media[types.OCILayer] || !media[types.OCIUncompressedLayer] {
		t.Errorf("layers are %v, want some with gzip and some without", media)
	}
}

func difficulties(h *tar.Header, below, seen map[string]bool) {
	base := filepath.Base(h.Name)
	for what, is := range map[string]bool{
		"deleted":       strings.HasPrefix(base, whiteoutPrefix) && base != opaqueMarker,
		"opaque":        base == opaqueMarker,
		"replaced":      h.Typeflag == tar.TypeReg && below[cleanName(h.Name)],
		"hard link":     h.Typeflag == tar.TypeLink,
		"symbolic link": h.Typeflag == tar.TypeSymlink,
		"user xattr":    h.PAXRecords[xattrRecord+"user.text"] != "",
		"capability":    h.PAXRecords[xattrRecord+"security.capability"] != "",
		"setuid":        h.Typeflag == tar.TypeReg && h.Mode&0o4000 != 0,
		"device":        h.Typeflag == tar.TypeChar,
		"fifo":          h.Typeflag == tar.TypeFifo,
		"over 100 MB":   h.Size > 100_000_000,
		"0 bytes":       h.Typeflag == tar.TypeReg && h.Size == 0,
		"odd name":      strings.Contains(h.Name, "\n"),
		"odd owner":     h.Uid > 1<<31,
	} {
		seen[what] = seen[what] || is
	}
}

// openArchive unpacks an archive and opens the image with that name in it, all
// digests checked.
func openArchive(t *testing.T, path, name string) v1.Image {
	t.Helper()
	dir := t.TempDir()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for archive := tar.NewReader(file); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(filepath.Join(dir, h.Name), 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		out, err := os.Create(filepath.Join(dir, h.Name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, archive); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	found := slices.IndexFunc(manifest.Manifests, func(d v1.Descriptor) bool { return d.Annotations[annotationName] == name })
	if found < 0 {
		t.Fatalf("%s has no image %s", path, name)
	}
	img, err := index.Image(manifest.Manifests[found].Digest)
	if err != nil {
		t.Fatal(err)
	}
	checkDigests(t, img)
	return img
}

// checkDigests reads every layer, as stored and unpacked, against what the
// manifest and the configuration say.
func checkDigests(t *testing.T, img v1.Image) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if len(config.RootFS.DiffIDs) != len(layers) || len(config.History) != len(layers) {
		t.Fatalf("%d layers, %d of them in the configuration, %d in its history",
			len(layers), len(config.RootFS.DiffIDs), len(config.History))
	}
	for i, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		for _, check := range []struct {
			open func() (io.ReadCloser, error)
			want v1.Hash
		}{{l.Compressed, digest}, {l.Uncompressed, config.RootFS.DiffIDs[i]}} {
			r, err := check.open()
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := v1.SHA256(r)
			if err := errors.Join(err, r.Close()); err != nil {
				t.Fatal(err)
			}
			if got != check.want {
				t.Errorf("layer %d: content %s, said to be %s", i+1, got, check.want)
			}
		}
	}
}

func readLayer(t *testing.T, l v1.Layer) []*tar.Header {
	t.Helper()
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var entries []*tar.Header
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, h)
	}
}

func TestBadInputsAreNamed(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(in *Inputs) error
		says  string
	}{
		{"no base", func(in *Inputs) error { return os.Remove(filepath.Join(in.Base, "rootfs.tar")) }, "tools.sh base"},
		{"no tree-list", func(in *Inputs) error { return os.Remove(in.TreeList) }, "tree-list"},
		{"no list of packages", func(in *Inputs) error { return os.Remove(filepath.Join(in.Base, "debs/layers")) }, "tools.sh debs"},
		{"a package is not in the list", func(in *Inputs) error {
			return os.WriteFile(filepath.Join(in.Base, "debs/layers"), []byte("redis-server a.deb\n"), 0o644)
		}, "no package nginx-light"},
		{"a package's file is a path", func(in *Inputs) error {
			return os.WriteFile(filepath.Join(in.Base, "debs/layers"), []byte("redis-server ../a.deb\n"), 0o644)
		}, "is not a file name"},
		{"a package is none", func(in *Inputs) error {
			return os.WriteFile(filepath.Join(in.Base, "debs/procps_1%3a2.0_all.deb"), []byte("<html>"), 0o644)
		}, "not a Debian package"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := fakeInputs(t)
			if err := c.spoil(&in); err != nil {
				t.Fatal(err)
			}
			_, err := Build(in)
			if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want one that is %q and says %q", err, ErrInput, c.says)
			}
			if left, _ := filepath.Glob(filepath.Join(in.Out, "*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}
