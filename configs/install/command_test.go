package install

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/test/need"
)

// cli runs a command with arguments on the bed's host.
func (b *bed) cli(args ...string) (string, error) {
	b.t.Helper()
	cmd := NewCommand()
	if args[0] == "uninstall" {
		cmd = NewUninstallCommand()
	} else {
		args = append(args, "--payload", b.options.Payload)
	}
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs(append(args[1:], "--root", b.dir))
	err := cmd.ExecuteContext(b.t.Context())
	return out.String(), err
}

// withoutContainerd are flags for a host on which nothing can be run.
var withoutContainerd = []string{"install", "--no-check", "--containerd", "", "--containerd-version", "2.3.7"}

func TestTheCommandsTellWhatTheyChange(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	out, err := b.cli(append(withoutContainerd, "--handler", "vm", "--default-size", "5G", "--bin-dir", "/opt/bin")...)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"created   /opt/bin/erofsvm\n", "created   /etc/containerd/conf.d/erofsvm.toml\n", "systemctl restart containerd\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("%q lacks %q", out, line)
		}
	}
	drop := b.read("etc/containerd/conf.d/erofsvm.toml")
	for _, want := range []string{`runtimes."vm"]`, `default_size = "5G"`, `runtime_path = "/opt/bin/containerd-shim-erofsvm-v2"`} {
		if !strings.Contains(drop, want) {
			t.Errorf("the drop-in lacks %s:\n%s", want, drop)
		}
	}
	if out, err := b.cli(append(withoutContainerd, "--handler", "vm", "--default-size", "5G", "--bin-dir", "/opt/bin")...); err != nil || strings.Contains(out, "restart") || strings.Contains(out, "created") {
		t.Errorf("the second time: %q, %v", out, err)
	}
	if out, err := b.cli("uninstall", "--dry-run"); err != nil || !strings.Contains(out, "removed   /opt/bin/erofsvm") {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := b.cli("uninstall"); err != nil || !strings.Contains(out, "systemctl restart containerd") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestTheDropinGoesWhereItIsImportedFrom(t *testing.T) {
	b := newBed(t, map[string]string{"opt/k/config.toml": "version = 3\nimports = [\"/opt/k/more.d/*.toml\"]\n"})
	args := append(withoutContainerd, "--containerd-config", "/opt/k/config.toml")
	if _, err := b.cli(args...); err == nil || !strings.Contains(err.Error(), "/opt/k/conf.d/*.toml") {
		t.Errorf("beside the file: %v", err)
	}
	if _, err := b.cli(append(args, "--dropin-dir", "/opt/k/more.d")...); err != nil {
		t.Fatal(err)
	}
	b.read("opt/k/more.d/erofsvm.toml")
	if _, err := b.cli(append(args, "--dropin-dir", "more.d")...); err == nil {
		t.Error("a relative directory was taken")
	}
}

func TestAConfigurationIsReadFromAFile(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	name := filepath.Join(t.TempDir(), "c.toml")
	writeFile(t, name, "[hypervisor]\nvcpus = 3\n")
	if _, err := b.cli(append(withoutContainerd, "--configuration", name)...); err != nil {
		t.Fatal(err)
	}
	if got := b.read("etc/erofsvm/configuration.toml"); got != "[hypervisor]\nvcpus = 3\n" {
		t.Errorf("%q", got)
	}
}

func TestAHostThatCannotRunVMsIsLeftAlone(t *testing.T) {
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	before := b.tree()
	if _, err := b.cli("install", "--containerd-version", "2.4.2"); err == nil || !strings.Contains(err.Error(), "mkfs.erofs") {
		t.Errorf("%v, want what is missing", err)
	}
	out, err := b.cli("install", "--containerd-version", "2.4.2", "--skip-unfit")
	if err != nil || !strings.Contains(out, "nothing is installed") {
		t.Errorf("%q, %v", out, err)
	}
	out, err = b.cli("install", "--skip-unfit")
	if err != nil || !strings.Contains(out, "nothing is installed") || !strings.Contains(out, "containerd: executable file not found") {
		t.Errorf("without a containerd: %q, %v", out, err)
	}
	if _, err := b.cli("install", "--no-check"); err == nil || !strings.Contains(err.Error(), "containerd: executable file not found") {
		t.Errorf("nobody says which containerd: %v", err)
	}
	if !mapsEqual(before, b.tree()) {
		t.Error("something was installed")
	}
}

// program puts a static program into the host's root directory.
func (b *bed) program(name, body string) {
	b.t.Helper()
	source := filepath.Join(b.t.TempDir(), "main.go")
	writeFile(b.t, source, "package main\nimport (\"os\";\"strings\")\nvar _ = strings.Join\nfunc main() {"+body+"\n}\n")
	build := exec.CommandContext(b.t.Context(), "go", "build", "-o", filepath.Join(b.dir, "usr/bin", name), source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.t.Fatalf("%v: %s", err, out)
	}
}

// TestAKernelThatCanKnowEROFSIsMadeTo has a program in the place of modprobe.
func TestAKernelThatCanKnowEROFSIsMadeTo(t *testing.T) {
	need.Root(t, "to chroot(2)")
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport, "proc/filesystems": "nodev\ttmpfs\n"})
	b.program("modprobe", `os.WriteFile("/proc/filesystems", []byte("nodev\ttmpfs\n\t"+os.Args[1]+"\n"), 0o600)`)
	for _, dryRun := range []bool{true, false} {
		args := []string{"install", "--containerd-version", "2.4.2"}
		if dryRun {
			args = append(args, "--dry-run")
		}
		_, err := b.cli(args...)
		if err == nil || strings.Contains(err.Error(), "erofs: the kernel") != dryRun {
			t.Errorf("dry run %v: %v", dryRun, err)
		}
	}
}

// TestContainerdIsRestartedOnceForAChange has a program in the place of systemctl
// that notes how it was called, and fails the first time.
func TestContainerdIsRestartedOnceForAChange(t *testing.T) {
	need.Root(t, "to chroot(2)")
	b := newBed(t, map[string]string{"etc/containerd/config.toml": mainWithImport})
	b.program("systemctl", `
	f, _ := os.OpenFile("/run/called", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	f.WriteString(strings.Join(os.Args[1:], " ") + " " + os.Getenv("SYSTEMD_IGNORE_CHROOT") + "\n")
	if _, err := os.Stat("/run/fails"); err == nil { os.Exit(1) }`)
	b.write("run/fails", "")
	args := append(withoutContainerd, "--restart", "containerd.service")
	if _, err := b.cli(args...); err == nil || !strings.Contains(err.Error(), "not restarted") {
		t.Errorf("%v", err)
	}
	if err := os.Remove(filepath.Join(b.dir, "run/fails")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := b.cli(args...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.cli("uninstall", "--restart", "containerd.service"); err != nil {
		t.Fatal(err)
	}
	const call = "restart containerd.service 1\n"
	if got := b.read("run/called"); got != call+call+call {
		t.Errorf("systemctl was called as %q: want once in vain, once for what was installed, once for what was removed", got)
	}
}
