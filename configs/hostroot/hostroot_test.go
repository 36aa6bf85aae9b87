package hostroot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/test/need"
)

// makeTree makes a host below a temporary directory: name → text, "→target" for a
// link.
func makeTree(t *testing.T, files map[string]string) Root {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(text, "→"); link {
			err = os.Symlink(target, at)
		} else {
			err = os.WriteFile(at, []byte(text), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := New(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestLinksLeadWhereTheyLeadOnTheHost(t *testing.T) {
	root := makeTree(t, map[string]string{
		"var/usrlocal/bin/tool": "tool",
		"usr/local":             "→/var/usrlocal",
		"etc/secret":            "of the host",
		"etc/link":              "→/etc/secret",
		"etc/out":               "→../../../../../../etc/secret",
	})
	for name, want := range map[string]string{
		"/usr/local/bin/tool": "tool", "/etc/link": "of the host", "/etc/out": "of the host", "/../../etc/secret": "of the host",
	} {
		if got, err := root.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := root.Real("/usr/local/bin/new"); err != nil || got != filepath.Join(root.Dir(), "var/usrlocal/bin/new") {
		t.Errorf("a new file would be %s, %v", got, err)
	}
	if got, err := root.Real("/etc/link"); err != nil || got != filepath.Join(root.Dir(), "etc/link") {
		t.Errorf("the link itself is %s, %v", got, err)
	}
	if _, err := root.ReadFile("/etc/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, name := range []string{"relative", "", "/a\x00b"} {
		if _, err := root.Real(name); err == nil {
			t.Errorf("%q was taken for a path", name)
		}
	}
}

func TestGlobNamesPathsOfTheHost(t *testing.T) {
	root := makeTree(t, map[string]string{"etc/conf.d/a.toml": "", "etc/conf.d/b.toml": "", "etc/conf.d/c.txt": "", "x": "→/etc/conf.d"})
	for pattern, want := range map[string][]string{
		"/etc/conf.d/*.toml": {"/etc/conf.d/a.toml", "/etc/conf.d/b.toml"},
		"/x/*.toml":          {"/x/a.toml", "/x/b.toml"},
		"/*/conf.d/a.*":      {"/etc/conf.d/a.toml"},
		"/none/*":            nil,
	} {
		if got, err := root.Glob(pattern); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", pattern, got, err, want)
		}
	}
}

func TestProgramsAreFoundAsAServiceFindsThem(t *testing.T) {
	root := makeTree(t, map[string]string{
		"usr/bin/tool": "x", "usr/local/bin/tool": "x", "bin": "→usr/bin", "usr/sbin/data/x": "", "opt/own": "x",
		"usr/bin/other": "→/opt/own",
	})
	if err := os.Chmod(filepath.Join(root.Dir(), "usr/local/bin/tool"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"tool": "/usr/bin/tool", "other": "/usr/bin/other", "/opt/own": "/opt/own"} {
		if got, err := root.LookPath(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for _, name := range []string{"none", "data", "/opt/none", "./tool"} {
		if got, err := root.LookPath(name); err == nil {
			t.Errorf("%s is %s", name, got)
		}
	}
	if !root.InPath("/usr/local/bin/") || root.InPath("/opt") {
		t.Error("wrong directories are those of PATH")
	}
}

// TestAProgramRunsInTheHostsRoot has a static program that says what it sees.
func TestAProgramRunsInTheHostsRoot(t *testing.T) {
	need.Root(t, "to chroot(2)")
	root := makeTree(t, map[string]string{"etc/name": "inside", "usr/bin/.keep": ""})
	source := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(source, []byte(`package main
import ("fmt";"os";"strings")
func main() {
	b, err := os.ReadFile("/etc/name")
	fmt.Println(string(b), err, strings.Join(os.Environ(), " "), os.Args[1])
}`), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root.Dir(), "usr/bin/look"), source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Setenv("SECRET", "of this process")
	out, err := root.Run(t.Context(), []string{"MORE=1"}, "look", "argument")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out); !strings.HasPrefix(got, "inside <nil> ") || !strings.Contains(got, "MORE=1") || !strings.Contains(got, "argument") || strings.Contains(got, "SECRET") {
		t.Errorf("it says %q", got)
	}
}

func TestAProgramIsBoundedInTimeAndOutput(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"hangs": "exec sleep 1000", "fails": "echo first >&2; echo reason >&2; exit 3", "errs": "echo version 1.2.3 >&2", "floods": "head -c 3000000 /dev/zero",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := New("/", dir+":/usr/bin:/bin")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := root.Run(ctx, nil, "hangs"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := root.Run(t.Context(), nil, "fails"); err == nil || !strings.HasSuffix(err.Error(), "exit status 3: reason") {
		t.Errorf("%v", err)
	}
	if out, err := root.Run(t.Context(), nil, "errs"); err != nil || string(out) != "version 1.2.3\n" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := root.Run(t.Context(), nil, "floods"); err != nil || len(out) != maxOutput {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

func TestAHostIsADirectory(t *testing.T) {
	if _, err := New(filepath.Join(t.TempDir(), "none"), ""); err == nil {
		t.Error("a directory that is not there was taken")
	}
	if _, err := New("/", "bin:/bin"); err == nil {
		t.Error("a relative directory in PATH was taken")
	}
}
