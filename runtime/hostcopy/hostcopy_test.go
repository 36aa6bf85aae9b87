package hostcopy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func enough() *Budget { return &Budget{Bytes: 1 << 20, Entries: 100} }

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func scan(t *testing.T, source string, b *Budget) *Tree {
	t.Helper()
	tree, err := Scan(source, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tree.Close)
	return tree
}

func list(tree *Tree) []string {
	var names []string
	for _, e := range tree.Entries {
		names = append(names, fmt.Sprintf("%q %o %s", e.Name, e.Type(), e.Target))
	}
	return names
}

func TestADirectoryIsListedWithParentsFirst(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "b", "file"), "hello")
	write(t, filepath.Join(dir, "a"), "")
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	b := enough()
	tree := scan(t, dir, b)
	want := []string{`"" 40000 `, `"a" 100000 `, `"b" 40000 `, `"b/file" 100000 `, `"empty" 40000 `, `"link" 120000 /etc/shadow`}
	if got := list(tree); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if b.Entries != 100-6 || b.Bytes != 1<<20-5 {
		t.Errorf("the budget is %+v", b)
	}
	f, err := tree.Read(tree.Entries[3])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if data, err := io.ReadAll(f); string(data) != "hello" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	if e := tree.Entries[3]; e.Mode != unix.S_IFREG|0o640 || int(e.UID) != os.Getuid() || e.Size != 5 {
		t.Errorf("%+v", e)
	}
}

func TestAFileIsATreeOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "file"), "hello")
	link := filepath.Join(dir, "link")
	if err := os.Symlink("file", link); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{file, link} {
		tree := scan(t, source, enough())
		if got := list(tree); !slices.Equal(got, []string{`"" 100000 `}) {
			t.Errorf("%s: %q", source, got)
		}
		f, err := tree.Read(tree.Entries[0])
		if err != nil {
			t.Fatal(err)
		}
		if data, _ := io.ReadAll(f); string(data) != "hello" {
			t.Errorf("%s: %q", source, data)
		}
		f.Close()
	}
}

func TestWhatIsNoFileIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.Symlink("/proc/self", kernel); err != nil {
		t.Fatal(err)
	}
	for source, text := range map[string]string{
		socket: "is a socket", dir: socket + " is a socket", fifo: "is a fifo", "/dev/null": "is a device",
		"/proc/version": "proc of the host's kernel", kernel: "proc of the host's kernel",
	} {
		if _, err := Scan(source, enough()); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v; want %q", source, err, text)
		}
	}
	if _, err := Scan(filepath.Join(dir, "nothing"), enough()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

func TestTheBudgetIsSharedAndKept(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), "12345")
	write(t, filepath.Join(dir, "b"), "12345")
	for _, tc := range []struct {
		budget Budget
		want   error
	}{
		{Budget{Bytes: 10, Entries: 3}, nil},
		{Budget{Bytes: 9, Entries: 3}, ErrBytes},
		{Budget{Bytes: 10, Entries: 2}, ErrEntries},
		{Budget{}, ErrEntries},
	} {
		if tree, err := Scan(dir, &tc.budget); !errors.Is(err, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.budget, err, tc.want)
		} else if tree != nil {
			tree.Close()
		}
	}
	b := &Budget{Bytes: 10, Entries: 4}
	scan(t, dir, b)
	if _, err := Scan(dir, b); !errors.Is(err, ErrBytes) && !errors.Is(err, ErrEntries) {
		t.Errorf("second scan: %v", err)
	}
}

func TestNothingOutsideIsReadWhateverIsPutIn(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write(t, filepath.Join(outside, "secret"), "12345")
	write(t, filepath.Join(dir, "sub", "secret"), "abcde")
	tree := scan(t, dir, enough())
	entry := tree.Entries[2]
	if entry.Name != "sub/secret" {
		t.Fatalf("%+v", entry)
	}
	swap := func(name, target string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	swap("sub", outside) // a parent became a link
	if f, err := tree.Read(entry); err == nil {
		t.Errorf("read %s through a link", f.Name())
	}
	if err := os.Remove(filepath.Join(dir, "sub")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "sub", "secret"), "fghij")
	swap("sub/secret", filepath.Join(outside, "secret"))
	if f, err := tree.Read(entry); err == nil {
		t.Errorf("read %s through a link", f.Name())
	}
}

func TestAFileThatGrowsIsNoticed(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "file"), "1")
	tree := scan(t, file, enough())
	write(t, file, "12")
	if _, err := tree.Read(tree.Entries[0]); !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
}

func TestDepthIsBounded(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, strings.Repeat("d/", maxDepth), "file"), "")
	if _, err := Scan(dir, enough()); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v", err)
	}
}

func TestNamesThatCannotBeSentAreRefused(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "bad\xff"), "")
	if _, err := Scan(dir, enough()); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), `bad\xff`) {
		t.Errorf("%v", err)
	}
}
