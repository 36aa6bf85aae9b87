package hostshare

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/need"
)

func needRoot(t *testing.T) {
	t.Helper()
	need.Root(t, "to clone mounts")
}

func open(t *testing.T, source string, recursive bool) *Tree {
	t.Helper()
	needRoot(t)
	tree, err := Open(source, recursive)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tree.Close)
	return tree
}

// names lists what is in a tree, below a directory of it.
func names(t *testing.T, tree *Tree, dir string) string {
	t.Helper()
	fd, err := unix.Openat(int(tree.Mount().Fd()), dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	found, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, " ")
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestATreeIsWhatWasFound, through links, and stays it when the name is another's.
func TestATreeIsWhatWasFound(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	write(t, filepath.Join(dir, "one/first"))
	write(t, filepath.Join(dir, "two/second"))
	if err := os.Symlink("one", link); err != nil {
		t.Fatal(err)
	}
	tree := open(t, link, true)
	if err := errors.Join(os.Remove(link), os.Symlink("two", link), os.Rename(filepath.Join(dir, "one"), filepath.Join(dir, "three"))); err != nil {
		t.Fatal(err)
	}
	if got := names(t, tree, "."); got != "first" {
		t.Errorf("the tree has %q", got)
	}
}

func TestMountsBelowBelongToItWhereAskedFor(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "below/hidden"))
	below := filepath.Join(dir, "below")
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(below, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	write(t, filepath.Join(below, "mounted"))
	for recursive, want := range map[bool]string{true: "mounted", false: "hidden"} {
		if got := names(t, open(t, dir, recursive), "below"); got != want {
			t.Errorf("recursive %v: %q", recursive, got)
		}
	}
}

func TestWhatAGuestCannotHaveIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	fifo, socket, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "socket"), filepath.Join(dir, "link")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink("/proc/self", link)); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for source, want := range map[string]string{
		fifo: "fifo", socket: "type uds", "/dev/null": "device", link: "proc of the host's kernel",
	} {
		if _, err := Open(source, true); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), source) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", source, err)
		}
	}
	if _, err := Open(filepath.Join(dir, "gone"), true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a source that is not there: %v", err)
	}
}
