package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestAnInstallationThatWasInterruptedIsFinishedOrUndone has a directory in the
// way of each file in turn, as good as a full disk, and then takes it away.
func TestAnInstallationThatWasInterruptedIsFinishedOrUndone(t *testing.T) {
	for n := range all {
		for _, undo := range []bool{false, true} {
			b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
			before := b.tree()
			b.say = func(c Change) {
				b.changes = append(b.changes, string(c.Action)+" "+c.Path)
				if len(b.changes) == n+1 { // the next one cannot be written
					b.breakPayload()
				}
			}
			_, err := b.Install(t.Context(), b.options)
			if n < 3 && err == nil {
				t.Fatalf("after %d files nothing failed", n+1)
			}
			b.mendPayload()
			b.say = func(c Change) { b.changes = append(b.changes, string(c.Action)+" "+c.Path) }
			if !undo {
				b.install()
				if r := b.install(); slices.ContainsFunc(b.changes, func(c string) bool { return !strings.HasPrefix(c, "unchanged") }) {
					t.Errorf("after %d files: %q, %v", n+1, b.changes, r)
				}
			}
			b.uninstall()
			if after := b.tree(); !mapsEqual(before, after) {
				t.Errorf("after %d files there is left %v", n+1, after)
			}
		}
	}
}

func (b *bed) breakPayload() {
	if err := os.Rename(b.options.Payload, b.options.Payload+".away"); err != nil {
		b.t.Error(err)
	}
}

func (b *bed) mendPayload() {
	if err := os.Rename(b.options.Payload+".away", b.options.Payload); err != nil {
		b.t.Fatal(err)
	}
}

func TestAnUpgradeThatWasInterruptedKnowsBothFiles(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	before := b.tree()
	b.install()
	for _, name := range []string{"bin/containerd-shim-erofsvm-v2", "bin/erofsvm", "guest/vmlinux"} {
		writeFile(t, filepath.Join(b.options.Payload, name), "2")
	}
	b.say = func(c Change) {
		if c.Path == "/usr/local/bin/erofsvm" {
			b.breakPayload()
		}
	}
	if _, err := b.Install(t.Context(), b.options); err == nil {
		t.Fatal("nothing failed")
	}
	b.mendPayload()
	if b.read("usr/local/bin/erofsvm") != "2" || b.read("usr/share/erofsvm/vmlinux") != "kernel 1" {
		t.Fatal("it was not interrupted between the two")
	}
	b.uninstall()
	if after := b.tree(); !mapsEqual(before, after) {
		t.Errorf("there is left %v", after)
	}
}

func TestWhatAKilledRunLeftIsCleanedUp(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport, "usr/local/bin/.erofsvm-123456": "half", "usr/local/bin/other": "x"})
	b.install()
	if _, err := os.Stat(filepath.Join(b.dir, "usr/local/bin/.erofsvm-123456")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	b.read("usr/local/bin/other")
}

func TestTwoDoNotWorkAtOnce(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	b.say = func(Change) {
		if _, err := b.Uninstall(true, false); err == nil || !strings.Contains(err.Error(), "another erofsvm") {
			t.Errorf("%v", err)
		}
	}
	b.install()
}

func TestNothingIsUninstalledUnderRunningVMs(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	b.install()
	b.write("run/erofsvm/0123/marker", "")
	before := b.tree()
	if _, err := b.Uninstall(false, false); err == nil || !strings.Contains(err.Error(), "1 virtual machines run") {
		t.Errorf("%v", err)
	}
	if !mapsEqual(before, b.tree()) {
		t.Error("something was removed")
	}
	if _, err := b.Uninstall(true, false); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNoFileIsInTheWay(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	link := filepath.Join(b.dir, "usr/local/bin/erofsvm")
	if err := os.Symlink("/usr/bin/env", link); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Install(t.Context(), b.options); err == nil || !strings.Contains(err.Error(), "/usr/local/bin/erofsvm") {
		t.Errorf("%v", err)
	}
	if _, err := os.Readlink(link); err != nil {
		t.Error("the link is gone")
	}
}

// TestLinksOfTheHostAreFollowedOnTheHost: a host whose /usr/local is a link to
// /var/usrlocal, looked at from outside.
func TestLinksOfTheHostAreFollowedOnTheHost(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport, "var/usrlocal/bin/x": ""})
	if err := os.RemoveAll(filepath.Join(b.dir, "usr/local")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/var/usrlocal", filepath.Join(b.dir, "usr/local")); err != nil {
		t.Fatal(err)
	}
	b.install()
	if b.read("var/usrlocal/bin/erofsvm") != "program 1" {
		t.Error("it went elsewhere")
	}
	b.uninstall()
}

func TestABrokenManifestIsNotGuessedAt(t *testing.T) {
	for _, text := range []string{"{", `{"version":2}`, `{"version":1,"files":[{"path":"../x"}]}`, `{"version":1,"dirs":["/"]}`} {
		b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport, "var/lib/erofsvm/installed.json": text})
		if _, err := b.Install(t.Context(), b.options); err == nil || !strings.Contains(err.Error(), "installed.json") {
			t.Errorf("%s: %v", text, err)
		}
		if _, err := b.Uninstall(true, false); err == nil {
			t.Errorf("%s: uninstalled", text)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"files":[{"path":"/a","sha256":["x"]}],"dirs":["/b"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBed(t, map[string]string{"var/lib/erofsvm/installed.json": string(data)})
		m, err := b.readManifest()
		if err != nil {
			return
		}
		for _, e := range m.Files {
			if real, err := b.root.Real(e.Path); err == nil && !strings.HasPrefix(real, b.dir+"/") {
				t.Errorf("%s is outside of the host", real)
			}
		}
	})
}
