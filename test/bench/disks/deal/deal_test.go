package deal

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"slices"
	"testing"
)

// archive has a line for each path: name, mode, link, content.
func archive(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		content := []byte(nil)
		if h.Typeflag == tar.TypeReg {
			content = []byte("content of " + h.Name)
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func dir(name string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }

func tree(t *testing.T) io.Reader {
	return archive(t, dir("./", 0o755), dir("./a/", 0o700), file("./a/1"), file("./a/2"), dir("./a/b/", 0o1777), file("./a/b/3"),
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./a/b/4", Linkname: "3", Mode: 0o777},
		dir("./empty/", 0o711), tar.Header{Typeflag: tar.TypeLink, Name: "./a/5", Linkname: "./a/1", Mode: 0o644})
}

// names are the paths of an archive, as they are read.
func names(t *testing.T, data []byte) (all []string, dirs map[string]int64, content map[string]string) {
	t.Helper()
	dirs, content = map[string]int64{}, map[string]string{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all, dirs, content
		}
		if err != nil {
			t.Fatal(err)
		}
		name := clean(h.Name)
		all = append(all, name)
		if h.Typeflag == tar.TypeDir {
			dirs[name] = h.Mode
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		content[name] = string(text)
	}
}

func TestEveryPathIsInOneLayerAndItsDirectoriesInThatToo(t *testing.T) {
	layers, err := Tar(tree(t), 3)
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 3 {
		t.Fatalf("%d layers", len(layers))
	}
	want := [][]string{
		{".", "a", "a/1", "a/5"}, // the hard link stays with its file
		{".", "a", "a/2", "a/b", "a/b/3"},
		{".", "a", "a/b", "a/b/4", "empty"},
	}
	modes := map[string]int64{".": 0o755, "a": 0o700, "a/b": 0o1777, "empty": 0o711}
	for i, data := range layers {
		got, dirs, content := names(t, data)
		if !slices.Equal(got, want[i]) {
			t.Errorf("layer %d has %q, want %q", i, got, want[i])
		}
		for name, mode := range dirs {
			if mode != modes[name] {
				t.Errorf("layer %d: directory %q has mode %o, want %o", i, name, mode, modes[name])
			}
		}
		for _, name := range []string{"a/1", "a/2", "a/b/3"} {
			if text, has := content[name]; has && text != "content of ./"+name {
				t.Errorf("layer %d: %q holds %q", i, name, text)
			}
		}
	}
}

func TestOneLayerIsTheArchive(t *testing.T) {
	layers, err := Tar(tree(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	got, dirs, _ := names(t, layers[0])
	if want := []string{".", "a", "a/1", "a/2", "a/b", "a/b/3", "a/b/4", "empty", "a/5"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := slices.Sorted(maps.Keys(dirs)); !slices.Equal(got, []string{".", "a", "a/b", "empty"}) {
		t.Errorf("directories %q", got)
	}
}

func TestWhatCannotBeDealtIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		archive io.Reader
		n       int
	}{
		"more layers than paths":  {archive(t, dir("./", 0o755)), 2},
		"no layer":                {tree(t), 0},
		"a directory not listed":  {archive(t, dir("./", 0o755), file("./a/1")), 1},
		"a link before its file":  {archive(t, dir("./", 0o755), tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "b"}, file("b")), 1},
		"no archive":              {bytes.NewReader(bytes.Repeat([]byte("x"), 1024)), 1},
		"an archive without root": {archive(t, file("1")), 1},
	} {
		if _, err := Tar(c.archive, c.n); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
