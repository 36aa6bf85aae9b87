package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSpecIsRefusedWithTheOptionToChange(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	good := Spec{
		Dir: filepath.Join(dir, "vm"), Binary: file, Kernel: file, Initrd: file,
		VCPUs: 1, MemoryMiB: 128, DiskSlots: 1,
	}
	if err := good.withDefaults().validate(); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	for name, tc := range map[string]struct {
		change func(*Spec)
		says   string
	}{
		"no qemu":                {func(s *Spec) { s.Binary = missing }, "qemu path: stat " + missing},
		"qemu not executable":    {func(s *Spec) { s.Binary = plain }, "qemu path: " + plain + " is not executable"},
		"no kernel":              {func(s *Spec) { s.Kernel = missing }, "kernel: stat " + missing},
		"kernel is a directory":  {func(s *Spec) { s.Kernel = dir }, "kernel: " + dir + " is not a regular file"},
		"kernel not set":         {func(s *Spec) { s.Kernel = "" }, "kernel: no path is set"},
		"no initrd":              {func(s *Spec) { s.Initrd = missing }, "initrd: stat " + missing},
		"relative path":          {func(s *Spec) { s.Dir = "vm" }, "state directory: "},
		"newline in a path":      {func(s *Spec) { s.Dir = "/run/a\nb" }, "state directory: "},
		"path that climbs":       {func(s *Spec) { s.Dir = "/run/../etc" }, "state directory: "},
		"cache directory":        {func(s *Spec) { s.CacheDir = "cache" }, "cache directory: "},
		"machine":                {func(s *Spec) { s.Machine = "q35,accel=kvm" }, "machine: "},
		"microvm":                {func(s *Spec) { s.Machine = "microvm" }, "machine: "},
		"accelerator":            {func(s *Spec) { s.Accelerator = "xen" }, "accelerator: "},
		"aio":                    {func(s *Spec) { s.AIO = "posix" }, "aio: "},
		"native without direct":  {func(s *Spec) { s.AIO = AIONative }, "cache_direct"},
		"no vcpu":                {func(s *Spec) { s.VCPUs = 0 }, "vcpus: "},
		"too many vcpus":         {func(s *Spec) { s.VCPUs = 256 }, "vcpus: "},
		"little memory":          {func(s *Spec) { s.MemoryMiB = 63 }, "memory: "},
		"negative slots":         {func(s *Spec) { s.DiskSlots = -1 }, "disk slots: "},
		"too many slots":         {func(s *Spec) { s.DiskSlots = MaxDiskSlots + 1 }, "disk slots: "},
		"blank in a parameter":   {func(s *Spec) { s.KernelParams = []string{"a b"} }, "kernel parameters: "},
		"newline in a parameter": {func(s *Spec) { s.KernelParams = []string{"a\nb"} }, "kernel parameters: "},
		"empty parameter":        {func(s *Spec) { s.KernelParams = []string{""} }, "kernel parameters: "},
	} {
		t.Run(name, func(t *testing.T) {
			spec := good
			tc.change(&spec)
			_, err := Start(t.Context(), spec)
			if !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error is %v, want it to say %q", err, tc.says)
			}
			if _, err := os.Stat(good.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory was made (%v)", err)
			}
		})
	}
}

func TestEverythingWrongIsSaidAtOnce(t *testing.T) {
	err := Spec{}.withDefaults().validate()
	for _, option := range []string{"qemu path", "kernel", "initrd", "state directory", "vcpus", "memory"} {
		if !strings.Contains(err.Error(), option+": ") {
			t.Errorf("%q is missing in %v", option, err)
		}
	}
}
