// Package testguest builds, for tests, a guest image from the tools that
// test/setup/tools.sh installed: Debian's kernel and an initramfs with the
// program in the folder init and a few modules.
//
// It is called by tests only, from any goroutine, and writes nothing outside the
// directories it is given.
package testguest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
	"github.com/ulikunitz/xz"
)

// Tools are the programs and files that a VM is made of.
type Tools struct {
	Root        string // the directory test/setup/tools.sh filled
	QEMU        string
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
		VsockDaemon: filepath.Join(root, "vhost-device-vsock/usr/bin/vhost-device-vsock"),
		Kernel:      one(t, filepath.Join(root, "kernel/boot/vmlinuz-*")),
		Modules:     one(t, filepath.Join(root, "kernel/lib/modules/*")),
	}
	for _, path := range []string{tools.QEMU, tools.VsockDaemon} {
		if _, err := os.Stat(path); err != nil {
			missing(t, path)
		}
	}
	return tools
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
	return build(t, dir, "init", "github.com/erofsvm/erofsvm/hypervisor/internal/testguest/init")
}

func build(t testing.TB, dir, name, pkg string) string {
	t.Helper()
	out := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, msg)
	}
	return out
}

// BootModules are what the program needs to listen and to see disks, in the
// order in which they are loaded.
var BootModules = []string{
	"kernel/net/vmw_vsock/vsock.ko",
	"kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
	"kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko",
	"kernel/drivers/block/virtio_blk.ko",
}

// Initramfs writes an uncompressed cpio archive to path: the program as /init, modules
// (paths below tools.Modules, without .xz) as /modules/NN-name.ko, and
// further files by their name in the guest.
func Initramfs(t testing.TB, tools Tools, path, init string, modules []string, more map[string]string) {
	t.Helper()
	records := []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.Directory("proc", 0o755), cpio.Directory("sys", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1), // for the output of PID 1
		cpio.Directory("modules", 0o755), cpio.Directory("tmp", 0o777),
		cpio.StaticFile("init", string(read(t, init)), 0o755),
	}
	for i, m := range modules {
		name := fmt.Sprintf("modules/%02d-%s", i, filepath.Base(m))
		records = append(records, cpio.StaticFile(name, string(unxz(t, filepath.Join(tools.Modules, m+".xz"))), 0o644))
	}
	made := map[string]bool{}
	for name, source := range more {
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			if made[dir] {
				break
			}
			made[dir] = true
		}
		records = append(records, cpio.StaticFile(name, string(read(t, source)), 0o755))
	}
	var archive bytes.Buffer
	w := cpio.Newc.Writer(&archive)
	var dirs []cpio.Record
	for dir := range made {
		dirs = append(dirs, cpio.Directory(dir, 0o755))
	}
	sortByName(dirs)
	if err := cpio.WriteRecords(w, append(dirs, records...)); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func sortByName(records []cpio.Record) {
	for i := range records {
		for j := i; j > 0 && records[j].Name < records[j-1].Name; j-- {
			records[j], records[j-1] = records[j-1], records[j]
		}
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unxz(t testing.TB, path string) []byte {
	t.Helper()
	r, err := xz.NewReader(bytes.NewReader(read(t, path)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return b
}
