//go:build vhostvsock

package qemu

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// TestVhost boots guests whose vsock device, and whose network interface, are served
// by the host's kernel. A host that cannot is replaced by a VM of the distribution's
// kernel, in which this same test runs; emulation within emulation takes minutes.
func TestVhost(t *testing.T) {
	for _, device := range []string{"/dev/vhost-vsock", "/dev/vhost-net", "/dev/net/tun"} {
		if _, err := os.Stat(device); err != nil {
			inOuterVM(t)
			return
		}
	}
	t.Run("vsock", kernelVsock)
	t.Run("net", kernelNet)
}

func kernelVsock(t *testing.T) {
	spec := guestSpec(t)
	spec.Vsock, spec.VsockDaemon = vsock.Auto, ""
	other := spec
	other.stopped, other.Dir = true, filepath.Join(shortDir(t), "vm")

	m := start(t, spec)
	second := start(t, other)
	if a, b := m.vsock.Wiring(), second.vsock.Wiring(); a.Kind != vsock.Kernel || a.CID == b.CID || a.SharedMemory {
		t.Errorf("devices are %+v and %+v", a, b)
	}
	if err := m.WaitReady(within(t)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		var answer struct{ Echo string }
		if dial(t, m).ask(&answer, "echo hello-%d", i); answer.Echo != fmt.Sprintf("hello-%d", i) {
			t.Errorf("echo is %q", answer.Echo)
		}
	}
	if _, err := m.Dial(within(t), 4711); err == nil {
		t.Error("a port where nobody listens answers")
	}
	t.Logf("CID %d, phases %+v", m.vsock.Wiring().CID, m.Timings())

	// And plugged into a VM that goes on from a saved one.
	_, from, err := Describe(within(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	from.From = saved(t, from)
	from.Dir = filepath.Join(shortDir(t), "vm")
	third := start(t, from)
	if err := third.Run(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := third.WaitReady(within(t)); err != nil {
		t.Fatal(err)
	}
	var answer struct{ Echo string }
	if dial(t, third).ask(&answer, "echo again"); answer.Echo != "again" {
		t.Errorf("echo is %q", answer.Echo)
	}
	t.Logf("goes on, phases %+v, %d KiB of memory of its own", third.Timings(), ownKiB(t, third, from.From.Memory.Name()))
}

// outerModules make /dev/vhost-vsock, /dev/vhost-net and /dev/net/tun.
var outerModules = []string{
	"kernel/net/vmw_vsock/vsock.ko",
	"kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
	"kernel/drivers/vhost/vhost_iotlb.ko",
	"kernel/drivers/vhost/vhost.ko",
	"kernel/drivers/vhost/vhost_vsock.ko",
	"kernel/drivers/net/tun.ko",
	"kernel/drivers/net/tap.ko",
	"kernel/drivers/vhost/vhost_net.ko",
}

// inOuterVM runs this test's binary in a VM. QEMU and what it opens lie there
// under the paths they have here.
func inOuterVM(t *testing.T) {
	tools := testguest.Find(t)
	dir := t.TempDir()
	files := map[string]string{
		"outer/qemu.test":   testguest.Build(t, filepath.Join(dir, "qemu.test"), "test", "-c", "-tags=vhostvsock", "../../qemu"),
		"outer/initrd.cpio": netInitrd(t, tools),
		tools.Kernel[1:]:    tools.Kernel,
	}
	links := map[string]string{}
	shipQEMU(t, tools, files, links)
	for _, m := range testguest.BootModules[:1] { // makes tools.Modules exist
		files[filepath.Join(tools.Modules, m+".xz")[1:]] = filepath.Join(tools.Modules, m+".xz")
	}
	image := filepath.Join(dir, "outer.cpio")
	testguest.Initramfs(t, tools, image, testguest.Content{
		Init:    testguest.Build(t, filepath.Join(dir, "outer"), "build", "outer"),
		Modules: outerModules, Files: files, Links: links,
	})

	// Not a Machine: this VM's console is the test's log.
	cmd := exec.CommandContext(t.Context(), tools.QEMU,
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-machine", "q35", "-accel", "tcg", "-cpu", "max,la57=off", "-smp", "2", "-m", "2G",
		"-kernel", tools.Kernel, "-initrd", image,
		"-append", strings.Join([]string{
			"console=ttyS0", "quiet", "panic=-1", "TMPDIR=/tmp",
			"EROFSVM_TOOLS=" + tools.Root, patienceVar + "=25m", initrdVar + "=/outer/initrd.cpio",
			"--", "/outer/qemu.test", "-test.v", "-test.timeout=28m", "-test.run=^TestVhost$",
		}, " "))
	cmd.Stderr = os.Stderr
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	passed := false
	for lines := bufio.NewScanner(console); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		t.Log(line)
		passed = passed || line == "outer: passed"
	}
	if err := cmd.Wait(); err != nil || !passed {
		t.Errorf("the test in the outer VM failed (QEMU: %v)", err)
	}
}

// shipQEMU adds QEMU, its libraries and its firmware.
func shipQEMU(t *testing.T, tools testguest.Tools, files, links map[string]string) {
	t.Helper()
	ship := func(path string) { files[filepath.Clean(path)[1:]] = path }
	ship(tools.QEMU)
	ship(tools.VsockDaemon) // not run there, but looked for
	out, err := exec.Command("ldd", tools.QEMU).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", tools.QEMU, err)
	}
	for line := range strings.Lines(string(out)) {
		// "libc.so.6 => /lib/…/libc.so.6 (0x…)", or the loader's path alone.
		for field := range strings.FieldsSeq(line) {
			if filepath.IsAbs(field) {
				ship(field)
			}
		}
	}
	root := filepath.Dir(filepath.Dir(filepath.Dir(tools.QEMU)))
	for _, pattern := range []string{"usr/share/seabios/bios-256k.bin", "usr/share/qemu/*.bin", "usr/lib/*/qemu/accel-*.so"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			ship(path)
		}
	}
	links[filepath.Join(filepath.Dir(tools.QEMU), "qemu-bundle")[1:]] = "../.."
}
