package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"testing"
)

// layersOf runs functions on a layer each, one above the other, and returns
// what the last one has in it, an entry a line.
func layersOf(t *testing.T, writes ...func(*layer) error) []string {
	t.Helper()
	g := newGround()
	var out bytes.Buffer
	for _, write := range writes {
		out.Reset()
		l := newLayer(&out, g)
		if err := write(l); err != nil {
			t.Fatal(err)
		}
		if err := l.tar.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var entries []string
	for archive := tar.NewReader(&out); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %s %o %d:%d", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid)
		if h.Linkname != "" {
			line += " " + h.Linkname
		}
		entries = append(entries, line)
	}
}

func TestDirectoriesOnTheWayAreListedAsBelow(t *testing.T) {
	base := func(l *layer) error {
		return do(
			func() error { return l.dir(".", 0o755) },
			func() error { return l.dir("a/b", 0o2750, owner(1, 2)) },
			func() error { return l.dir("gone", 0o700) },
		)
	}
	for _, c := range []struct {
		name  string
		above func(*layer) error
		want  []string
	}{
		{
			"once, with mode and owner",
			func(l *layer) error {
				return do(
					func() error { return l.file("a/b/c/one", 0o644, "") },
					func() error { return l.file("/a/b/c/two", 0o644, "") },
				)
			},
			[]string{"5 ./ 755 0:0", "5 a/ 755 0:0", "5 a/b/ 2750 1:2", "5 a/b/c/ 755 0:0", "0 a/b/c/one 644 0:0", "0 a/b/c/two 644 0:0"},
		},
		{
			"what was deleted is forgotten",
			func(l *layer) error {
				return do(func() error { return l.remove("gone") }, func() error { return l.file("gone/new", 0o644, "") })
			},
			[]string{"5 ./ 755 0:0", "0 .wh.gone 0 0:0", "5 gone/ 755 0:0", "0 gone/new 644 0:0"},
		},
		{
			"an opaque directory",
			func(l *layer) error { return l.opaque("a/b", 0o711) },
			[]string{"5 ./ 755 0:0", "5 a/ 755 0:0", "5 a/b/ 711 0:0", "0 a/b/.wh..wh..opq 0 0:0"},
		},
		{
			"another name of a file has its mode and owner",
			func(l *layer) error {
				return do(
					func() error { return l.file("one", 0o4711, "x", owner(3, 4)) },
					func() error { return l.hardlink("two", "one") },
				)
			},
			[]string{"5 ./ 755 0:0", "0 one 4711 3:4", "1 two 4711 3:4 one"},
		},
		{"nothing", noEntries, nil},
	} {
		if got := layersOf(t, base, c.above); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n%s\nwant:\n%s", c.name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

func TestPackagesAreUnpackedAsDpkgWould(t *testing.T) {
	base := func(l *layer) error {
		return do(
			func() error { return l.dir(".", 0o755) },
			func() error { return l.dir("usr/bin", 0o751, owner(7, 7)) },
			func() error { return l.symlink("bin", "usr/bin") },
			func() error { return l.symlink("var/run", "/run") },
		)
	}
	deb := tarOf(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
		tar.Header{Name: "./bin/", Typeflag: tar.TypeDir, Mode: 0o700},
		tar.Header{Name: "./bin/tool", Typeflag: tar.TypeReg, Mode: 0o755, Uname: "builder"},
		tar.Header{Name: "./bin/alias", Typeflag: tar.TypeLink, Linkname: "./bin/tool", Mode: 0o755},
		tar.Header{Name: "./var/run/tool/", Typeflag: tar.TypeDir, Mode: 0o750},
	)
	got := layersOf(t, base, func(l *layer) error { return l.unpack(tar.NewReader(bytes.NewReader(deb))) })
	want := []string{
		"5 ./ 755 0:0", "5 usr/ 755 0:0", "5 usr/bin/ 751 7:7", "0 usr/bin/tool 755 0:0",
		"1 usr/bin/alias 755 0:0 usr/bin/tool", "5 run/ 755 0:0", "5 run/tool/ 750 0:0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestLinksAreFollowedInParentsOnly(t *testing.T) {
	g := newGround()
	g.links = map[string]string{"bin": "usr/bin", "var/run": "/run", "loop": "loop", "up": "../../etc", "a": "b", "b": "bin"}
	for name, want := range map[string]string{
		"bin": "bin", "./bin/sh": "usr/bin/sh", "var/run/x/y": "run/x/y", "a/sh": "usr/bin/sh", "up/passwd": "etc/passwd",
		"../../etc": "etc", "": ".", "/": ".",
	} {
		got, err := g.resolve(name)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
	if _, err := g.resolve("loop/x"); err == nil {
		t.Error("a loop was followed to an end")
	}
}

func TestHardLinkNeedsItsFile(t *testing.T) {
	if err := newLayer(io.Discard, newGround()).hardlink("two", "one"); err == nil {
		t.Error("no error")
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("bin/sh", "bin", "../../usr/bin")
	f.Fuzz(func(t *testing.T, name, link, target string) {
		g := newGround()
		g.links[cleanName(link)] = target
		got, err := g.resolve(name)
		if err == nil && (got != cleanName(got) || path.IsAbs(got)) {
			t.Errorf("%q with %q → %q leads to %q", name, link, target, got)
		}
	})
}

func TestDamagedPackagesAreRefused(t *testing.T) {
	good := debOf("data.tar", []byte("content"))
	for _, c := range []struct {
		name string
		deb  []byte
		says string
	}{
		{"empty", nil, "no ar archive"},
		{"another file", []byte("<html></html>"), "no ar archive"},
		{"no data", debOf("other.tar", nil), "no data.tar"},
		{"cut off in a header", good[:len(arMagic)+20], "no data.tar"},
		{"cut off in a member", good[:len(arMagic)+arHeader+2], "debian-binary"},
		{"damaged header", bytes.Replace(good, []byte(arEnd), []byte("??"), 1), "damaged"},
		{"negative size", bytes.Replace(good, []byte("4         `"), []byte("-4        `"), 1), "size"},
		{"unknown compression", debOf("data.tar.br", nil), "decompressor"},
		{"not compressed as it says", debOf("data.tar.xz", []byte("content")), "data.tar.xz"},
	} {
		_, err := debData(bytes.NewReader(c.deb))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want an error that says %q", c.name, err, c.says)
		}
	}
	data, err := debData(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	if content, err := io.ReadAll(data); err != nil || string(content) != "content" {
		t.Errorf("%q, %v", content, err)
	}
}

func FuzzDebData(f *testing.F) {
	f.Add(debOf("data.tar", []byte("content")))
	f.Add(debOf("data.tar.gz", []byte("content")))
	f.Fuzz(func(_ *testing.T, deb []byte) {
		if data, err := debData(bytes.NewReader(deb)); err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(data, 1<<20))
		}
	})
}
