package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/test/need"
)

// bootDeadline is for an emulated guest on a busy machine; idle, it takes 4 s.
const bootDeadline = 3 * time.Minute

// TestRealKernelBootsAndLoadsEveryModule makes an image of the distribution's
// kernel with a first process that loads what the list names, and boots it.
func TestRealKernelBootsAndLoadsEveryModule(t *testing.T) {
	kernel, qemu := tool(t, "kernel"), tool(t, "qemu/usr/bin/qemu-system-x86_64")
	ctx, cancel := context.WithTimeout(t.Context(), bootDeadline)
	defer cancel()

	agent := filepath.Join(t.TempDir(), "bootcheck")
	build := exec.CommandContext(ctx, "go", "build", "-o", agent, "./testdata/bootcheck")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the first process: %v\n%s", err, out)
	}
	first, second := t.TempDir(), t.TempDir()
	report, err := Build(Options{KernelDir: kernel, Agent: agent, Output: first})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Build(Options{KernelDir: kernel, Agent: agent, Output: second}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{Kernel, Initrd, Manifest} {
		if !bytes.Equal(read(t, first, name), read(t, second, name)) {
			t.Errorf("%s differs between two builds of the same inputs", name)
		}
	}
	if report.KernelFormat != FormatELF {
		t.Errorf("the kernel is a %s: %s", report.KernelFormat, report.KernelNote)
	}

	vm := exec.CommandContext(ctx, qemu, "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", filepath.Join(first, Kernel), "-initrd", filepath.Join(first, Initrd),
		"-append", "console=ttyS0 quiet panic=-1 no_timer_check rdinit="+layout.Init)
	console, err := vm.CombinedOutput()
	if err != nil {
		t.Fatalf("qemu: %v (deadline %s)\n%s", err, bootDeadline, console)
	}
	for _, m := range report.Modules {
		if want := fmt.Sprintf("BOOTCHECK %s %s ", m.Stage, m.Name); !strings.Contains(string(console), want) {
			t.Errorf("the guest did not load %s %s", m.Stage, m.Name)
		}
	}
	if !strings.Contains(string(console), "BOOTCHECK done") {
		t.Error("the guest did not come to the end of the list")
	}
	t.Logf("%s", console)
}

// tool finds what test/setup/tools.sh brings; without it the test is skipped,
// but for a CI machine (CI=true), which has to have it.
func tool(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("EROFSVM_TOOLS")
	if dir == "" {
		dir = "../../.build/tools"
	}
	path := filepath.Join(dir, name)
	_, err := os.Stat(path)
	if err == nil {
		return path
	}
	need.Missing(t, "%v: make tools", err)
	return ""
}
