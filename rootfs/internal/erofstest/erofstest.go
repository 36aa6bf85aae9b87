// Package erofstest makes real EROFS layers for the tests of rootfs, with the
// mkfs.erofs and the options that containerd uses.
//
// Only tests import it. Its functions belong to the goroutine of the test that
// they are given, end it when something fails, and leave nothing behind.
package erofstest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/files"
)

// Tool returns the path of a tool of the build tree, such as
// "qemu/usr/bin/qemu-io". EROFSVM_TOOLS names another tree. Without the tool
// the test is skipped, but fails where CI is "true".
func Tool(t testing.TB, name string) string {
	t.Helper()
	tools := os.Getenv("EROFSVM_TOOLS")
	if tools == "" {
		tools = filepath.Join(moduleRoot(t), ".build", "tools")
	}
	path := filepath.Join(tools, name)
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		return path
	}
	missing := t.Skipf
	if os.Getenv("CI") == "true" {
		missing = t.Fatalf
	}
	missing("no executable %s; run make tools, or set EROFSVM_TOOLS", path)
	return ""
}

// Mkfs returns the path of mkfs.erofs.
func Mkfs(t testing.TB) string { return Tool(t, "erofs-utils/bin/mkfs.erofs") }

func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the test")
	return ""
}

// Entry is a file of a layer. The zero Type is a regular file with Body.
type Entry struct {
	tar.Header
	Body string
}

// File is a regular file, mode 0644, owned by root.
func File(name, body string) Entry {
	return Entry{Header: tar.Header{Name: name, Mode: 0o644}, Body: body}
}

// Dir is a directory, mode 0755, owned by root.
func Dir(name string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

// Layer makes the EROFS layer dir/name of the entries as the differ of
// containerd does from a layer's tar, and returns its path. More options of
// mkfs.erofs may be given.
func Layer(t testing.TB, dir, name string, entries []Entry, options ...string) string {
	t.Helper()
	return LayerWith(t, dir, name, entries, append([]string{"--tar=f", "-Enoinline_data", "-b4096"}, options...)...)
}

// LayerWith is Layer with the given options in the place of containerd's.
func LayerWith(t testing.TB, dir, name string, entries []Entry, options ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	cmd := exec.Command(Mkfs(t), append(append([]string{"--aufs", "--quiet"}, options...), path)...)
	cmd.Stdin = bytes.NewReader(Tar(t, entries))
	// Directories that the tar does not list get the time of the build.
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", modTime.Unix()))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return path
}

// TarLayer makes the EROFS layer dir/name as an index of the entries' tar, which
// follows it, as the differ of containerd does with enable_tar_index.
func TarLayer(t testing.TB, dir, name string, entries []Entry) string {
	t.Helper()
	path := LayerWith(t, dir, name, entries, "--tar=i", "-b4096")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(Tar(t, entries)); err != nil {
		t.Fatal(err)
	}
	return path
}

// Inspect opens the image at path until the test ends.
func Inspect(t testing.TB, path string) *erofs.Image {
	t.Helper()
	f, err := files.Open(path, files.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	image, err := erofs.Inspect(f)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// modTime is the time of every file, and of every build.
var modTime = time.Unix(1700000000, 0)

// Tar is the entries as a tar, with one time for all.
func Tar(t testing.TB, entries []Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size, h.ModTime, h.Format = int64(len(e.Body)), modTime, tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.Body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
