// Package testguest builds, for tests, a guest image from the tools that
// test/setup/tools.sh installed: Debian's kernel and an initramfs with the
// program in the folder init and a few modules.
//
// It is called by tests only, from any goroutine, and writes nothing outside the
// directories it is given.
package testguest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
	"github.com/ulikunitz/xz"
)

// Tools are the programs and files that a VM is made of.
type Tools struct {
	Root        string // the directory test/setup/tools.sh filled
	QEMU        string
	OldestQEMU  string // 7.2; may be missing
	VsockDaemon string
	Kernel      string // bzImage
	Modules     string // directory with the kernel's modules
}

// Find returns the installed tools, and skips the test, saying what is missing,
// where they are not. In CI a missing tool is a failure.
func Find(t testing.TB) Tools {
	t.Helper()
	root, err := toolsRoot()
	if err != nil {
		t.Fatal(err)
	}
	tools := Tools{
		Root:        root,
		QEMU:        filepath.Join(root, "qemu/usr/bin/qemu-system-x86_64"),
		OldestQEMU:  filepath.Join(root, "qemu7/usr/bin/qemu-system-x86_64"),
		VsockDaemon: filepath.Join(root, "vhost-device-vsock/usr/bin/vhost-device-vsock"),
		Kernel:      one(t, filepath.Join(root, "kernel/boot/vmlinuz-*")),
		Modules:     one(t, filepath.Join(root, "kernel/lib/modules/*")),
	}
	for _, file := range []string{tools.QEMU, tools.VsockDaemon} {
		if _, err := os.Stat(file); err != nil {
			missing(t, file)
		}
	}
	return tools
}

// Virtiofsd is the daemon that test/setup/tools.sh installed; without it the test is
// skipped, or fails in CI.
func Virtiofsd(t testing.TB) string {
	t.Helper()
	file := filepath.Join(Find(t).Root, "virtiofsd/usr/libexec/virtiofsd")
	if _, err := os.Stat(file); err != nil {
		missing(t, file)
	}
	return file
}

func one(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		missing(t, pattern)
	}
	return found[len(found)-1]
}

func missing(t testing.TB, what string) {
	t.Helper()
	msg := fmt.Sprintf("%s is missing: run test/setup/tools.sh, or set EROFSVM_TOOLS to where its tools are", what)
	if os.Getenv("CI") == "true" {
		t.Fatal(msg)
	}
	t.Skip(msg)
}

// toolsRoot is EROFSVM_TOOLS, or .build/tools beside go.mod.
func toolsRoot() (string, error) {
	if dir := os.Getenv("EROFSVM_TOOLS"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, ".build/tools"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod above the working directory")
		}
		dir = parent
	}
}

// BuildInit compiles the guest's program, static, into dir.
func BuildInit(t testing.TB, dir string) string {
	t.Helper()
	return Build(t, filepath.Join(dir, "init"), "build", "init")
}

// Build runs go with args, a command and its flags, on a package of this module,
// named by its path below this one. It returns out, a static program.
func Build(t testing.TB, out string, args ...string) string {
	t.Helper()
	pkg := path.Join("github.com/erofsvm/erofsvm/hypervisor/internal/testguest", args[len(args)-1])
	args = append(args[:len(args)-1:len(args)-1], "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, msg)
	}
	return out
}

// BootModules are what the program needs to listen and to see disks.
var BootModules = []string{
	"kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko",
	"kernel/drivers/block/virtio_blk.ko",
	"kernel/drivers/scsi/virtio_scsi.ko",
	"kernel/drivers/scsi/sd_mod.ko",
}

// Content is what an initramfs holds beside the directories every one needs.
type Content struct {
	Init    string            // the program that becomes /init
	Modules []string          // paths below Tools.Modules without .xz; with all they need they become /modules/NN-name.ko
	Files   map[string]string // path in the guest, without the leading '/': file of the host
	Links   map[string]string // path in the guest: target
}

// Initramfs writes an uncompressed cpio archive to file.
func Initramfs(t testing.TB, tools Tools, file string, c Content) {
	t.Helper()
	files := []cpio.Record{cpio.StaticFile("init", string(read(t, c.Init)), 0o755)}
	for i, m := range loadOrder(t, tools, c.Modules) {
		name := fmt.Sprintf("modules/%02d-%s", i, filepath.Base(m))
		files = append(files, cpio.StaticFile(name, string(unxz(t, filepath.Join(tools.Modules, m+".xz"))), 0o644))
	}
	for name, source := range c.Files {
		files = append(files, cpio.StaticFile(name, string(read(t, source)), 0o755))
	}
	for name, target := range c.Links {
		files = append(files, cpio.Symlink(name, target))
	}
	// A directory stands before what is in it.
	dirs := map[string]bool{"dev": true, "proc": true, "sys": true, "tmp": true, "modules": true}
	for _, f := range files {
		for dir := filepath.Dir(f.Name); dir != "."; dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
	}
	var records []cpio.Record
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		records = append(records, cpio.Directory(dir, 0o755))
	}
	records = append(records, cpio.CharDev("dev/console", 0o600, 5, 1)) // for the output of PID 1
	records = append(records, files...)

	var archive bytes.Buffer
	w := cpio.Newc.Writer(&archive)
	if err := errors.Join(cpio.WriteRecords(w, records), cpio.WriteTrailer(w)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// loadOrder puts before each of the modules, once, what it needs.
func loadOrder(t testing.TB, tools Tools, modules []string) []string {
	t.Helper()
	// "a.ko.xz: b.ko.xz c.ko.xz" in modules.dep: a needs b, which needs c.
	needs := map[string][]string{}
	for line := range strings.Lines(string(read(t, filepath.Join(tools.Modules, "modules.dep")))) {
		name, deps, _ := strings.Cut(strings.ReplaceAll(line, ".xz", ""), ":")
		needs[name] = strings.Fields(deps)
	}
	var order []string
	for _, m := range modules {
		deps, known := needs[m]
		if !known {
			t.Fatalf("the kernel of %s has no module %s", tools.Root, m)
		}
		for _, name := range slices.Backward(append([]string{m}, deps...)) {
			if !slices.Contains(order, name) {
				order = append(order, name)
			}
		}
	}
	return order
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unxz(t testing.TB, file string) []byte {
	t.Helper()
	r, err := xz.NewReader(bytes.NewReader(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return b
}
