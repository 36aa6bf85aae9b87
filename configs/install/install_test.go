package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/configs/dropin"
	"github.com/erofsvm/erofsvm/configs/hostroot"
)

// bed is a host with nothing but the directories that every one has, and what is
// to be installed on it.
type bed struct {
	*Installer
	t       *testing.T
	dir     string
	options Options
	changes []string // "created /path", since the last look
}

const mainWithImport = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"

func newBed(t *testing.T, files map[string]string) *bed {
	t.Helper()
	b := &bed{t: t, dir: t.TempDir()}
	for _, dir := range []string{"etc", "usr/bin", "usr/share", "usr/local/bin", "var/lib", "run"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		b.write(name, text)
	}
	payload := t.TempDir()
	for name, text := range map[string]string{
		"bin/" + dropin.Shim: "shim 1", "bin/erofsvm": "program 1", "guest/vmlinux": "kernel 1", "guest/initrd.img": "initrd 1",
	} {
		writeFile(t, filepath.Join(payload, name), text)
	}
	root, err := hostroot.New(b.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	b.Installer = New(root, func(c Change) { b.changes = append(b.changes, fmt.Sprintf("%s %s", c.Action, c.Path)) })
	b.options = Options{
		Payload: payload, BinDir: DefaultBinDir, ShareDir: DefaultShareDir, Main: DefaultMain,
		Release: dropin.Release{Major: 2, Minor: 4}, Dropin: dropin.Default(),
	}
	return b
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (b *bed) write(name, text string) { writeFile(b.t, filepath.Join(b.dir, name), text) }

func (b *bed) read(name string) string {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// tree are the files and directories of the host, with their modes and texts.
func (b *bed) tree() map[string]string {
	all := map[string]string{}
	err := filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := ""
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(data)
		}
		all[strings.TrimPrefix(path, b.dir)] = info.Mode().String() + " " + text
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

func (b *bed) install() Result {
	b.t.Helper()
	b.changes = nil
	r, err := b.Install(b.t.Context(), b.options)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bed) uninstall() Result {
	b.t.Helper()
	b.changes = nil
	r, err := b.Uninstall(false, false)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// paths of all that is installed where containerd has a configuration.
var all = []string{
	"/usr/local/bin/containerd-shim-erofsvm-v2", "/usr/local/bin/erofsvm", "/usr/share/erofsvm/vmlinux", "/usr/share/erofsvm/initrd.img",
	"/usr/share/erofsvm/configuration.toml", "/etc/modules-load.d/erofsvm.conf", "/etc/erofsvm/configuration.toml", "/etc/containerd/conf.d/erofsvm.toml",
}

func expect(t *testing.T, got []string, action Action, paths ...string) {
	t.Helper()
	var want []string
	for _, p := range paths {
		want = append(want, fmt.Sprintf("%s %s", action, p))
	}
	if !slices.Equal(got, want) {
		t.Errorf("changes %q\nwant %q", got, want)
	}
}

func TestInstallAndUninstallLeaveTheHostAsItWas(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	before := b.tree()
	if r := b.install(); !r.Restart {
		t.Error("containerd takes the drop-in without a restart")
	}
	expect(t, b.changes, Created, all...)
	if got := b.tree(); got["/usr/local/bin/"+dropin.Shim] != "-rwxr-xr-x shim 1" || got["/usr/share/erofsvm/vmlinux"] != "-rw-r--r-- kernel 1" {
		t.Errorf("installed %v", got)
	}
	if text := b.read("etc/containerd/conf.d/erofsvm.toml"); !strings.Contains(text, dropin.Runtime) || strings.Contains(text, "runtime_path") {
		t.Errorf("the drop-in is %s", text)
	}
	if _, err := configs.Load(filepath.Join(b.dir, "etc/erofsvm/configuration.toml")); err != nil {
		t.Error(err)
	}
	if r := b.uninstall(); !r.Restart {
		t.Error("containerd gives the drop-in up without a restart")
	}
	slices.Reverse(b.changes)
	expect(t, b.changes, Removed, all...)
	if after := b.tree(); !mapsEqual(before, after) {
		t.Errorf("afterwards there is %v\nbefore there was %v", after, before)
	}
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func TestASecondInstallationChangesNothing(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	b.install()
	if err := b.Restarted(); err != nil {
		t.Fatal(err)
	}
	before := b.tree()
	if r := b.install(); r.Restart {
		t.Error("containerd is to be restarted for nothing")
	}
	expect(t, b.changes, Unchanged, all...)
	if !mapsEqual(before, b.tree()) {
		t.Error("the host has changed")
	}
	b.uninstall()
	b.uninstall()
	expect(t, b.changes, Removed)
}

func TestARestartIsAskedForUntilItWasMade(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	for range 2 {
		if !b.install().Restart {
			t.Error("the restart was forgotten")
		}
	}
	if err := b.Restarted(); err != nil {
		t.Fatal(err)
	}
	if b.install().Restart {
		t.Error("the restart that was made is asked for")
	}
	writeFile(t, filepath.Join(b.options.Payload, "bin/erofsvm"), "program 2")
	if b.install().Restart {
		t.Error("containerd is to be restarted for a program that it does not run")
	}
}

func TestAnUpgradeReplacesWhatIsOurs(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	b.install()
	writeFile(t, filepath.Join(b.options.Payload, "guest/vmlinux"), "kernel 2")
	b.options.Dropin.DefaultSize = "20G"
	b.changes = nil
	if r := b.install(); !r.Restart {
		t.Error("no restart for another drop-in")
	}
	got := slices.DeleteFunc(b.changes, func(c string) bool { return strings.HasPrefix(c, "unchanged") })
	expect(t, got, Replaced, "/usr/share/erofsvm/vmlinux", "/etc/containerd/conf.d/erofsvm.toml")
	if b.read("usr/share/erofsvm/vmlinux") != "kernel 2" {
		t.Error("the kernel is the former one")
	}
	// What the next one has elsewhere, goes where it was.
	b.options.ShareDir = "/opt/erofsvm/share"
	b.install()
	for _, gone := range []string{"removed /usr/share/erofsvm/vmlinux", "created /opt/erofsvm/share/vmlinux", "replaced /etc/erofsvm/configuration.toml"} {
		if !slices.Contains(b.changes, gone) {
			t.Errorf("%q lack %q", b.changes, gone)
		}
	}
	if c, err := configs.Load(filepath.Join(b.dir, "etc/erofsvm/configuration.toml")); err != nil || c.Guest.Kernel != "/opt/erofsvm/share/vmlinux" {
		t.Errorf("the runtime looks for %s, %v", c.Guest.Kernel, err)
	}
	b.uninstall()
	if _, err := os.Stat(filepath.Join(b.dir, "opt")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/opt is left: %v", err)
	}
}

func TestFilesOfOthersStopItBeforeAnythingIsWritten(t *testing.T) {
	for _, name := range []string{"usr/local/bin/erofsvm", "usr/share/erofsvm/vmlinux", "etc/containerd/conf.d/erofsvm.toml"} {
		b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport, name: "of somebody else"})
		before := b.tree()
		_, err := b.Install(t.Context(), b.options)
		if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "/"+name) || !strings.Contains(err.Error(), "--force") {
			t.Errorf("%s: %v", name, err)
		}
		after := b.tree()
		delete(after, "/var/lib/erofsvm")
		delete(after, "/var/lib/erofsvm/lock")
		if !mapsEqual(before, after) {
			t.Errorf("%s: there is now %v", name, after)
		}
		b.options.Force = true
		b.install()
		if !slices.Contains(b.changes, "replaced /"+name) {
			t.Errorf("%s with force: %q", name, b.changes)
		}
	}
}

func TestAllConflictsAreNamedAtOnce(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport, "usr/local/bin/erofsvm": "x", "usr/share/erofsvm/initrd.img": "y"})
	_, err := b.Install(t.Context(), b.options)
	if err == nil || !strings.Contains(err.Error(), "bin/erofsvm") || !strings.Contains(err.Error(), "initrd.img") {
		t.Errorf("%v", err)
	}
}

func TestWhatWasChangedSinceIsNotOverwrittenAndNotRemoved(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	b.install()
	b.write("usr/local/bin/erofsvm", "changed")
	if _, err := b.Install(t.Context(), b.options); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "changed since") {
		t.Errorf("%v", err)
	}
	b.uninstall()
	if !slices.Contains(b.changes, "kept /usr/local/bin/erofsvm") || b.read("usr/local/bin/erofsvm") != "changed" {
		t.Errorf("%q", b.changes)
	}
	// It is remembered as ours, for force.
	b.changes = nil
	if _, err := b.Uninstall(true, false); err != nil {
		t.Fatal(err)
	}
	expect(t, b.changes, Removed, "/usr/local/bin/erofsvm")
	if _, err := os.Stat(filepath.Join(b.dir, manifestDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the manifest is left: %v", err)
	}
}

func TestAConfigurationOfTheAdministratorsStays(t *testing.T) {
	const mine = "[hypervisor]\nvcpus = 2\n"
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport, "etc/erofsvm/configuration.toml": mine})
	b.options.Force = true
	b.install()
	if !slices.Contains(b.changes, "kept /etc/erofsvm/configuration.toml") || b.read("etc/erofsvm/configuration.toml") != mine {
		t.Errorf("%q", b.changes)
	}
	b.uninstall()
	if b.read("etc/erofsvm/configuration.toml") != mine {
		t.Error("it is gone with the runtime")
	}
	// One that is asked for does not go over it unasked.
	b.options.Force, b.options.Config = false, "[hypervisor]\nvcpus = 3\n"
	if _, err := b.Install(t.Context(), b.options); !errors.Is(err, ErrConflict) {
		t.Errorf("%v", err)
	}
}

func TestOurConfigurationThatWasEditedStays(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	b.install()
	b.write("etc/erofsvm/configuration.toml", "[hypervisor]\nvcpus = 2\n")
	b.install()
	if !slices.Contains(b.changes, "kept /etc/erofsvm/configuration.toml") {
		t.Errorf("%q", b.changes)
	}
	b.uninstall()
	if !strings.Contains(b.read("etc/erofsvm/configuration.toml"), "vcpus = 2") {
		t.Error("the edit is lost")
	}
}

func TestAConfigurationWithAnErrorIsNotInstalled(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	b.options.Config = "[hypervisor]\nvcpus = 0\n"
	if _, err := b.Install(t.Context(), b.options); !errors.Is(err, configs.ErrInvalid) || len(b.changes) > 0 {
		t.Errorf("%v, %q", err, b.changes)
	}
}

func TestContainerdsOwnFileIsNeverChanged(t *testing.T) {
	const without = "version = 3\n# mine\n"
	b := newBed(t, map[string]string{"etc/containerd/config.toml": without})
	b.options.Force = true
	_, err := b.Install(t.Context(), b.options)
	if err == nil || !strings.Contains(err.Error(), `imports = ["/etc/containerd/conf.d/*.toml"]`) || !strings.Contains(err.Error(), DefaultMain) {
		t.Errorf("%v, want what to add", err)
	}
	if len(b.changes) > 0 || b.read("etc/containerd/config.toml") != without {
		t.Errorf("%q", b.changes)
	}
}

func TestAMainFileIsMadeWhereThereIsNone(t *testing.T) {
	b := newBed(t, nil)
	before := b.tree()
	b.install()
	if want := "version = 4\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"; !strings.HasSuffix(b.read("etc/containerd/config.toml"), want) {
		t.Errorf("it is %s", b.read("etc/containerd/config.toml"))
	}
	b.install()
	if slices.ContainsFunc(b.changes, func(c string) bool { return !strings.HasPrefix(c, "unchanged") }) || len(b.changes) != len(all)+1 {
		t.Errorf("the second time %q", b.changes)
	}
	// Another release wants another version in it, and it is ours to change.
	b.options.Release.Minor = 2
	b.install()
	if !strings.Contains(b.read("etc/containerd/config.toml"), "version = 3") || !strings.Contains(b.read("etc/containerd/conf.d/erofsvm.toml"), "version = 3") {
		t.Error("the versions of 2.2 are not 3")
	}
	b.uninstall()
	if !mapsEqual(before, b.tree()) {
		t.Errorf("there is now %v", b.tree())
	}
}

func TestAMainFileThatSomebodyTookOverStays(t *testing.T) {
	b := newBed(t, nil)
	b.install()
	own := b.read("etc/containerd/config.toml") + "[debug]\nlevel = \"debug\"\n"
	b.write("etc/containerd/config.toml", own)
	b.install()
	b.uninstall()
	if b.read("etc/containerd/config.toml") != own {
		t.Error("it was changed")
	}
}

func TestADryRunOnlySays(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	before := b.tree()
	b.options.DryRun = true
	if r := b.install(); !r.Restart {
		t.Error("no restart is said")
	}
	expect(t, b.changes, Created, all...)
	if !mapsEqual(before, b.tree()) {
		t.Errorf("there is now %v", b.tree())
	}
	b.options.DryRun = false
	b.install()
	before, b.changes = b.tree(), nil
	if _, err := b.Uninstall(false, true); err != nil || len(b.changes) != len(all) || !mapsEqual(before, b.tree()) {
		t.Errorf("%v, %q", err, b.changes)
	}
}
