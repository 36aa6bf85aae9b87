package files

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// copy makes a file among the copies of container "c".
func (b *bench) copy(t *testing.T, name string, content []byte) {
	t.Helper()
	path := filepath.Join(b.sockets.dir, "c", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) fetch(t *testing.T, name string) ([]byte, error) {
	t.Helper()
	conn, err := b.ask(t, streamwire.Request{Operation: streamwire.Fetch, Path: name})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	_, err = out.ReadFrom(&incoming{conn: conn})
	return out.Bytes(), err
}

func TestTheEndOfACopyComesBack(t *testing.T) {
	b := newBench(t)
	long := append(bytes.Repeat([]byte("x"), 1000), bytes.Repeat([]byte("0123456789abcdef"), streamwire.MaxFetch/16)...)
	for _, content := range [][]byte{nil, []byte("why it ended"), long} {
		b.copy(t, "1", content)
		got, err := b.fetch(t, "1")
		if err != nil || !bytes.Equal(got, content[max(0, len(content)-streamwire.MaxFetch):]) {
			t.Errorf("%d bytes come back as %d, %v", len(content), len(got), err)
		}
	}
}

// TestNothingButACopyComesBack, whatever the container has put in its place.
func TestNothingButACopyComesBack(t *testing.T) {
	b := newBench(t)
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.copy(t, "dir/file", nil)
	dir := filepath.Join(b.sockets.dir, "c")
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "parent")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "parent/secret", "fifo", "dir", "", ".", "..", "../x", "a/../../x", "/etc/passwd", "./1"} {
		if content, err := b.fetch(t, name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %q, %v", name, content, err)
		}
	}
	if _, err := b.fetch(t, "nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("nothing there: %v", err)
	}
}

func TestACopyIsRemovedAndNothingElse(t *testing.T) {
	b := newBench(t)
	outside := t.TempDir()
	kept := filepath.Join(outside, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.copy(t, "1/..old/key", nil)
	b.copy(t, "1/..new/key", nil)
	dir := filepath.Join(b.sockets.dir, "c", "1")
	for name, to := range map[string]string{"..old/out": outside, "parent": outside} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"1/..old", "1/..old", "nothing", "1/nothing/below"} { // again is no error
		if _, err := b.ask(t, streamwire.Request{Operation: streamwire.Remove, Path: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"1/parent/kept", "..", ".", "../c", "/", ""} {
		if _, err := b.ask(t, streamwire.Request{Operation: streamwire.Remove, Path: name}); err == nil {
			t.Errorf("%q is removed", name)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "..old")); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	for _, path := range []string{kept, filepath.Join(dir, "..new", "key")} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}
