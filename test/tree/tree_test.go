package tree

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/need"
)

// makeTree makes the same tree under a new root: dates, inode numbers and the
// order of creation differ, nothing else. What needs root is left out if the
// test does not run as root.
func makeTree(t *testing.T, order int) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(root, name) }
	steps := []func(){
		func() { must(os.WriteFile(in("b"), []byte("hello"), 0o640)) },
		func() { must(os.WriteFile(in("odd \n\t\"\\ü\xff name"), nil, 0o644)) },
		func() { must(os.Symlink("to/no where\n", in("dangling"))) },
		func() { must(unix.Mkfifo(in("fifo"), 0o600)) },
		func() {
			must(os.WriteFile(in("a-setuid"), []byte("x"), 0o755))
			must(unix.Chmod(in("a-setuid"), 0o4755))
		},
		func() { must(os.Mkdir(in("empty"), 0o700)) },
	}
	must(os.Mkdir(in("d"), 0o755))
	if order > 0 {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		step()
	}
	must(os.Link(in("b"), in("d/link-of-b")))
	must(unix.Lsetxattr(in("b"), "user.z", []byte("last"), 0))
	must(unix.Lsetxattr(in("b"), "user.a", []byte{0, 1, 0xff}, 0))
	must(os.Chtimes(in("b"), time.Time{}, time.Unix(1700000000, 123456789)))
	must(unix.Chmod(root, 0o755))
	if os.Geteuid() == 0 {
		must(unix.Mknod(in("node"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		must(unix.Lsetxattr(in("d"), "trusted.overlay.opaque", []byte("y"), 0))
		must(os.Lchown(in("dangling"), 1234567, 65534))
	}
	return root
}

func list(t *testing.T, root string, options Options) string {
	t.Helper()
	var out bytes.Buffer
	if _, err := List(&out, root, options); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestListingSaysAllThatMatters(t *testing.T) {
	need.Root(t, "to make device nodes and change owners")
	const want = `"." dir 0755 0:0
"a-setuid" file 4755 0:0 1 sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881
"b" file 0640 0:0 5 sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 xattr "user.a"="\x00\x01\xff" xattr "user.z"="last"
"d" dir 0755 0:0
"d/link-of-b" file 0640 0:0 5 sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 same "b" xattr "user.a"="\x00\x01\xff" xattr "user.z"="last"
"dangling" link 0777 1234567:65534 to "to/no where\n"
"empty" dir 0700 0:0
"fifo" fifo 0600 0:0
"node" char 0600 0:0 1:3
"odd \n\t\"\\\u00fc\xff name" file 0644 0:0 0 sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
`
	if got := list(t, makeTree(t, 0), Options{}); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestEqualTreesGiveEqualListings(t *testing.T) {
	a, b := list(t, makeTree(t, 0), Options{}), list(t, makeTree(t, 1), Options{})
	if diff := Diff([]byte(a), []byte(b), 10); diff != nil {
		t.Errorf("two copies of one tree differ:\n%s", strings.Join(diff, "\n"))
	}
}

func TestTimesAreAnOption(t *testing.T) {
	root := makeTree(t, 0)
	if got := list(t, root, Options{ModTime: true}); !strings.Contains(got, " mtime 1700000000.123456789 xattr ") {
		t.Errorf("no time of modification in:\n%s", got)
	}
	if got := list(t, root, Options{}); strings.Contains(got, "mtime") {
		t.Errorf("a time of modification in:\n%s", got)
	}
}

func TestSkippedPathsAreLeftOutWithWhatIsBelow(t *testing.T) {
	got := list(t, makeTree(t, 0), Options{Skip: []string{"d", "fifo"}})
	for _, path := range []string{`"d"`, `"d/`, `"fifo"`} {
		if strings.Contains(got, path) {
			t.Errorf("%s is in:\n%s", path, got)
		}
	}
	if !strings.Contains(got, `"dangling"`) {
		t.Errorf("a path that only begins like a skipped one is missing in:\n%s", got)
	}
}

func TestMountPointsAreLeftOutAndNamed(t *testing.T) {
	root := makeTree(t, 0)
	if err := unix.Mount("none", filepath.Join(root, "empty"), "tmpfs", 0, ""); err != nil {
		need.Missing(t, "mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(root, "empty"), 0) })
	if err := unix.Mount(filepath.Join(root, "a-setuid"), filepath.Join(root, "b"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(root, "b"), 0) })

	var out bytes.Buffer
	mounts, err := List(&out, root, Options{OneFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(mounts, []string{"b", "empty"}) {
		t.Errorf("mount points %q", mounts)
	}
	if got := out.String(); strings.Contains(got, `"empty`) || strings.Contains(got, `"b"`) {
		t.Errorf("a mount point is in:\n%s", got)
	}
}

func TestWhatCannotBeReadIsInTheListing(t *testing.T) {
	var out bytes.Buffer
	_, err := List(&out, filepath.Join(t.TempDir(), "none"), Options{})
	if !errors.Is(err, ErrIncomplete) {
		t.Errorf("%v is not %q", err, ErrIncomplete)
	}
	if got, want := out.String(), "\".\" unknown error=\"ENOENT\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestErrorOfTheWriterComesBack(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	need.NoError(t, err)
	defer full.Close()
	if _, err := List(full, makeTree(t, 0), Options{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v is not %q", err, unix.ENOSPC)
	}
}

func TestDiffNamesWhatDiffers(t *testing.T) {
	const a = "\"a\" dir 0755 0:0\n\"b\" dir 0755 0:0\n\"c\" dir 0755 0:0\n"
	const b = "\"a\" dir 0755 0:0\n\"b\" dir 0777 0:0\n\"d\" dir 0755 0:0\n"
	for _, c := range []struct {
		name      string
		want, got string
		limit     int
		diff      []string
	}{
		{"equal", a, a, 9, nil},
		{"by path", a, b, 9, []string{`-"b" dir 0755 0:0`, `+"b" dir 0777 0:0`, `-"c" dir 0755 0:0`, `+"d" dir 0755 0:0`}},
		{"no more than asked", a, b, 1, []string{`-"b" dir 0755 0:0`, "and 3 lines more"}},
		{"order alone", "x\ny\n", "y\nx\n", 9, []string{"the same lines in another order"}},
	} {
		if got := Diff([]byte(c.want), []byte(c.got), c.limit); !slices.Equal(got, c.diff) {
			t.Errorf("%s: %q, want %q", c.name, got, c.diff)
		}
	}
}
