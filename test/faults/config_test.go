package faults

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// TestWhatTheConfigurationNamesIsNotThere: the error names what is missing and
// the path, so that the reader knows which line of which file to change.
func TestWhatTheConfigurationNamesIsNotThere(t *testing.T) {
	for name, c := range map[string]struct{ section, key, want string }{
		"QEMU":       {"hypervisor", "path", "hypervisor.path"},
		"kernel":     {"guest", "kernel", "guest.kernel"},
		"initrd":     {"guest", "initrd", "guest.initrd"},
		"mkfs.erofs": {"rootfs", "mkfs_erofs", "mkfs.erofs cannot be used"},
	} {
		t.Run(name, func(t *testing.T) {
			bed := e2etest.Newest(t)
			r := prepare(t, bed, bed.Image(t, "two", harness.Snapshotter))
			absent := filepath.Join(t.TempDir(), "absent")
			// A cache of its own: an fsmeta that is already there would need
			// no mkfs.erofs.
			err := createFails(t, bed, r.mounts, write(t, bed.ShimConfig().
				Set(c.section, c.key, absent).Set("", "cache_dir", t.TempDir()).
				Set("rootfs", "layers", "merge"))) // else there would be partitions
			for _, want := range []string{c.want, absent} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not name %s: %v", want, err)
				}
			}
		})
	}
}

func TestAnUnknownKeyIsAnErrorWithItsLine(t *testing.T) {
	bed := e2etest.Newest(t)
	r := prepare(t, bed, bed.Image(t, "two", harness.Snapshotter))
	config := filepath.Join(t.TempDir(), "configuration.toml")
	if err := os.WriteFile(config, []byte("[guest]\nkernal = \"/vmlinux\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := createFails(t, bed, r.mounts, config)
	if !strings.Contains(err.Error(), config+":2:") || !strings.Contains(err.Error(), "guest.kernal") {
		t.Errorf("the error does not name the line and the key: %v", err)
	}
}

func TestAQEMUThatExitsAtOnce(t *testing.T) {
	bed := e2etest.Newest(t)
	r := prepare(t, bed, bed.Image(t, "two", harness.Snapshotter))
	script := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho 'no such machine: teapot' >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := createFails(t, bed, r.mounts, write(t, bed.ShimConfig().
		Set("hypervisor", "path", script).Set("hypervisor", "accelerator", "tcg")))
	if !strings.Contains(err.Error(), "no such machine: teapot") {
		t.Errorf("the error does not carry QEMU's stderr: %v", err)
	}
}

// TestAGuestThatPanics before its agent listens: the panic is in the error, and
// nobody waits for the deadline.
func TestAGuestThatPanics(t *testing.T) {
	bed := e2etest.Newest(t)
	r := prepare(t, bed, bed.Image(t, "two", harness.Snapshotter))
	err := createFails(t, bed, r.mounts, write(t, bed.ShimConfig().
		Set("guest", "initrd", initrd(t, "")).Set("deadlines", "agent", "1h")))
	if !strings.Contains(err.Error(), "Kernel panic - not syncing") {
		t.Errorf("the error does not carry the panic: %v", err)
	}
}

// TestAnAgentThatNeverAnswers: the deadline of the configuration ends the wait
// and the VM, and the error says which key it was.
func TestAnAgentThatNeverAnswers(t *testing.T) {
	bed := e2etest.Newest(t)
	r := prepare(t, bed, bed.Image(t, "two", harness.Snapshotter))
	mute := `package main

import (
	"fmt"
	"time"
)

func main() {
	fmt.Println("this init has nothing to say")
	for {
		time.Sleep(time.Hour)
	}
}
`
	err := createFails(t, bed, r.mounts, write(t, bed.ShimConfig().
		Set("guest", "initrd", initrd(t, mute)).Set("deadlines", "agent", "8s")))
	if !strings.Contains(err.Error(), "deadlines.agent") {
		t.Errorf("the error does not name the deadline: %v", err)
	}
}

func write(t *testing.T, config harness.ShimConfig) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "configuration.toml")
	if err := config.Write(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// initrd writes an initramfs with a Go program as its only file, /init; without
// a program it is empty and the kernel has nothing to start.
func initrd(t *testing.T, source string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "initrd.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := cpio.Newc.Writer(f)
	records := []cpio.Record{cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1)}
	if source != "" {
		records = append(records, cpio.StaticFile("init", string(compile(t, dir, source)), 0o755))
	}
	if err := cpio.WriteRecords(w, records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return path
}

func compile(t *testing.T, dir, source string) []byte {
	t.Helper()
	file, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", program, file)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's init: %v\n%s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
