package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/erofsvm/erofsvm/guest/layout"
)

func TestSameInputsGiveSameBytes(t *testing.T) {
	first := syntheticOptions(t)
	second := syntheticOptions(t)
	for file := range walk(t, second.KernelDir) {
		if err := os.Chtimes(file, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	for _, options := range []Options{first, second} {
		if _, err := Build(options); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{Kernel, Initrd, Manifest} {
		a, b := read(t, first.Output, name), read(t, second.Output, name)
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs between two builds of the same inputs", name)
		}
	}
}

func TestReportIsReadable(t *testing.T) {
	options := syntheticOptions(t)
	report, err := Build(options)
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	if err := report.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.golden", table.Bytes())
	golden(t, "manifest.golden", read(t, options.Output, Manifest))
}

func TestInitrdHoldsTheContract(t *testing.T) {
	options := syntheticOptions(t)
	if _, err := Build(options); err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(read(t, options.Output, Initrd))))
	if err != nil {
		t.Fatal(err)
	}
	content := map[string]string{}
	var names []string
	for _, r := range records {
		names = append(names, r.Name)
		if r.MTime != 0 || r.UID != 0 || r.GID != 0 {
			t.Errorf("%s: mtime %d, owner %d:%d; all of them should be 0", r.Name, r.MTime, r.UID, r.GID)
		}
		data := make([]byte, r.FileSize)
		if r.FileSize > 0 {
			if _, err := r.ReadAt(data, 0); err != nil {
				t.Fatal(err)
			}
		}
		content[r.Name] = string(data)
	}
	if !slices.IsSorted(names) {
		t.Errorf("members are not sorted, so a file can come before its directory: %q", names)
	}
	if "/"+names[0] != layout.Mark {
		t.Errorf("the first member is %s: a shim will not know the image for ours", names[0])
	}
	if got, want := content["init"], string(read(t, options.Agent)); got != want {
		t.Errorf("%s is not the agent", layout.Init)
	}
	const list = "boot vsock.ko\nboot vmw_vsock_virtio_transport.ko\n" +
		"late virtio_blk.ko\nlate erofs.ko\nlate overlay.ko\nlate virtio-rng.ko\n" +
		"scsi scsi_mod.ko\nscsi virtio_scsi.ko\nscsi sd_mod.ko\n" +
		"verity sha256-ssse3.ko\nverity dm-mod.ko\nverity dm-verity.ko\nnetwork virtio_net.ko\n"
	if got := content["modules/list"]; got != list {
		t.Errorf("%s:\n%s\nwant:\n%s", layout.ModuleList, got, list)
	}
	if got, want := content["modules/erofs.ko"], elf.ELFMAG+" module kernel/fs/erofs.ko.gz"; got != want {
		t.Errorf("erofs.ko holds %q, want it uncompressed: %q", got, want)
	}
	for _, dir := range []string{"dev", "proc", "run", "sys", "tmp"} {
		if _, ok := content[dir]; !ok {
			t.Errorf("directory %s is missing", dir)
		}
	}
	console := records[slices.Index(names, "dev/console")]
	if console.Mode != cpio.S_IFCHR|0o600 || console.Rmajor != 5 || console.Rminor != 1 {
		t.Errorf("dev/console is %v", console.Info)
	}
}

func TestBadInputsAreNamed(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, o *Options)
		is    error
		says  string
	}{
		{"no kernel directory", func(_ *testing.T, o *Options) { o.KernelDir += "/none" }, ErrNoKernel, "linux-image"},
		{"two kernels", func(t *testing.T, o *Options) {
			if err := os.Mkdir(filepath.Join(o.KernelDir, "lib/modules/6.2.0"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, ErrNoKernel, "2 versions"},
		{"version that is a path", func(_ *testing.T, o *Options) { o.Version = "../../etc" }, ErrNoKernel, "no kernel release"},
		{"version that is not there", func(_ *testing.T, o *Options) { o.Version = "1.0" }, fs.ErrNotExist, "vmlinuz-1.0"},
		{"no agent", func(_ *testing.T, o *Options) { o.Agent += ".none" }, fs.ErrNotExist, "read agent"},
		{"dynamic agent", func(t *testing.T, o *Options) {
			write(t, o.Agent, minimalELF(elf.PT_INTERP, []byte("/lib64/ld-linux-x86-64.so.2\x00")))
		}, ErrAgent, "CGO_ENABLED=0"},
		{"agent that is a script", func(t *testing.T, o *Options) { write(t, o.Agent, []byte("#!/bin/sh\n")) }, ErrAgent, ""},
		{"module without file", func(t *testing.T, o *Options) {
			if err := os.Remove(filepath.Join(o.KernelDir, "lib/modules/6.1.0-test/kernel/fs/erofs.ko.gz")); err != nil {
				t.Fatal(err)
			}
		}, ErrNoModule, "erofs"},
		{"module that is cut off", func(t *testing.T, o *Options) {
			file := filepath.Join(o.KernelDir, "lib/modules/6.1.0-test/kernel/fs/erofs.ko.gz")
			write(t, file, read(t, file)[:20])
		}, nil, "unpack module kernel/fs/erofs.ko.gz"},
		{"module that is something else", func(t *testing.T, o *Options) {
			write(t, filepath.Join(o.KernelDir, "lib/modules/6.1.0-test/kernel/fs/erofs.ko.gz"), []byte("<html>"))
		}, nil, "erofs.ko.gz is not ELF"},
		{"unknown stage", func(_ *testing.T, o *Options) { o.Modules = []Want{{Name: "erofs", Stage: "never"}} }, nil, `no stage "never"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			options := syntheticOptions(t)
			c.spoil(t, &options)
			_, err := Build(options)
			if err == nil {
				t.Fatal("no error")
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v; want one that is %q", err, c.is)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want it to say %q", err, c.says)
			}
			if _, err := os.Stat(options.Output); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the output directory was touched: %v", err)
			}
		})
	}
}

func TestKernelThatCannotBeEnteredStaysCompressed(t *testing.T) {
	options := syntheticOptions(t)
	kernel := bzImage(t, compressors["zstd"], minimalELF(elf.PT_LOAD, nil))
	write(t, filepath.Join(options.KernelDir, "boot/vmlinuz-6.1.0-test"), kernel)
	report, err := Build(options)
	if err != nil {
		t.Fatal(err)
	}
	if report.KernelFormat != FormatBzImage || !strings.Contains(report.KernelNote, "PVH") {
		t.Errorf("format %s, note %q", report.KernelFormat, report.KernelNote)
	}
	if !bytes.Equal(read(t, options.Output, Kernel), kernel) {
		t.Error("the kernel is not the bzImage that came in")
	}
}

func walk(t *testing.T, dir string) func(func(string) bool) {
	t.Helper()
	return func(yield func(string) bool) {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && !yield(path) {
				return fs.SkipAll
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// golden compares with a file of testdata; UPDATE_GOLDEN=1 writes it instead.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		write(t, path, got)
	}
	if want := read(t, path); !bytes.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant (UPDATE_GOLDEN=1 accepts it):\n%s", name, got, want)
	}
}

// TestKernelOfOurOwnHasNoModules: one that is uncompressed and has everything built in
// is taken, but for its zeros.
func TestKernelOfOurOwnHasNoModules(t *testing.T) {
	options := syntheticOptions(t)
	var builtin strings.Builder
	for _, want := range DefaultModules() {
		builtin.WriteString("kernel/some/" + want.Name + ".ko\n")
	}
	vmlinux := minimalELF(elf.PT_NOTE, pvhNote())
	options.KernelDir = kernelTree(t, map[string]string{
		"boot/vmlinux-6.1.0-own": string(vmlinux), "boot/vmlinuz-6.1.0-own": "not looked at",
		"lib/modules/6.1.0-own/modules.dep": "", "lib/modules/6.1.0-own/modules.builtin": builtin.String(),
	})
	report, err := Build(options)
	if err != nil {
		t.Fatal(err)
	}
	if report.KernelFormat != FormatELF || len(report.Modules) > 0 || report.Inputs[0].Name != "vmlinux-6.1.0-own" {
		t.Errorf("%+v", report)
	}
	if want, err := lean(vmlinux); err != nil || !bytes.Equal(read(t, options.Output, Kernel), want) {
		t.Errorf("the kernel is not the one that came in: %v", err)
	}
	if manifest := read(t, options.Output, Manifest); !bytes.Contains(manifest, []byte(`"modules": []`)) {
		t.Errorf("%s", manifest)
	}

	write(t, filepath.Join(options.KernelDir, "boot/vmlinux-6.1.0-own"), minimalELF(elf.PT_LOAD, nil))
	if _, err := Build(options); !errors.Is(err, ErrNoKernel) || !strings.Contains(err.Error(), "CONFIG_PVH") {
		t.Errorf("a kernel that cannot be entered: %v", err)
	}
}
