package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/erofsvm/erofsvm/test/harness"
)

// greeting is what the trivial init prints.
const greeting = "init is up"

const trivialInit = `package main

import (
	"os"
	"syscall"
)

func main() {
	os.Stdout.WriteString("` + greeting + `\n")
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}
`

// bareBoot boots the guest's kernel in the same QEMU, with the same memory and
// nothing to plug anything into, and returns the time from exec until its init,
// that of trivialInitrd, has printed a line.
func bareBoot(ctx context.Context, tree harness.Tree, accelerator, initrd string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tree.QEMU(), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35", "-accel", accelerator, "-smp", "1", "-m", "512M",
		"-kernel", tree.Kernel(), "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 no_timer_check", "-serial", "stdio")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	console, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var problems strings.Builder
	cmd.Stderr = &problems
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var took time.Duration
	var seen []string
	for lines := bufio.NewScanner(console); lines.Scan(); {
		seen = append(seen, lines.Text())
		if strings.Contains(lines.Text(), greeting) {
			took = time.Since(begun)
		}
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("bare QEMU: %w\n%s\n%s", err, problems.String(), strings.Join(seen, "\n"))
	}
	if took == 0 {
		return 0, errors.New("the bare guest ended without a word:\n" + strings.Join(seen, "\n"))
	}
	return took, nil
}

// trivialInitrd makes an initramfs of an init that says so in dir.
func trivialInitrd(ctx context.Context, dir string) (string, error) {
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "init")
	if err := os.WriteFile(source, []byte(trivialInit), 0o644); err != nil {
		return "", err
	}
	build := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", program, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the trivial init: %w\n%s", err, text)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "initrd.img")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	w := cpio.Newc.Writer(f)
	err = errors.Join(cpio.WriteRecords(w, []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1), cpio.StaticFile("init", string(data), 0o755),
	}), cpio.WriteTrailer(w), f.Close())
	return path, err
}
