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
		"no qemu":                {func(s *Spec) { s.Binary = missing }, "hypervisor.path: stat " + missing},
		"qemu not executable":    {func(s *Spec) { s.Binary = plain }, "hypervisor.path: " + plain + " is not executable"},
		"no kernel":              {func(s *Spec) { s.Kernel = missing }, "guest.kernel: stat " + missing},
		"kernel is a directory":  {func(s *Spec) { s.Kernel = dir }, "guest.kernel: " + dir + " is not a regular file"},
		"kernel not set":         {func(s *Spec) { s.Kernel = "" }, "guest.kernel: no path is set"},
		"no initrd":              {func(s *Spec) { s.Initrd = missing }, "guest.initrd: stat " + missing},
		"relative path":          {func(s *Spec) { s.Dir = "vm" }, "state_dir: "},
		"newline in a path":      {func(s *Spec) { s.Dir = "/run/a\nb" }, "state_dir: "},
		"path that climbs":       {func(s *Spec) { s.Dir = "/run/../etc" }, "state_dir: "},
		"cache directory":        {func(s *Spec) { s.CacheDir = "cache" }, "cache_dir: "},
		"machine":                {func(s *Spec) { s.Machine = "q35,accel=kvm" }, "hypervisor.machine: "},
		"microvm":                {func(s *Spec) { s.Machine = "microvm" }, "hypervisor.machine: "},
		"accelerator":            {func(s *Spec) { s.Accelerator = "xen" }, "hypervisor.accelerator: "},
		"aio":                    {func(s *Spec) { s.AIO = "posix" }, "hypervisor.aio: "},
		"native without direct":  {func(s *Spec) { s.AIO = AIONative }, "hypervisor.aio: "},
		"too many iothreads":     {func(s *Spec) { s.IOThreads = 17 }, "hypervisor.iothreads: "},
		"no vcpu":                {func(s *Spec) { s.VCPUs = 0 }, "hypervisor.vcpus: "},
		"too many vcpus":         {func(s *Spec) { s.VCPUs = 256 }, "hypervisor.vcpus: "},
		"little memory":          {func(s *Spec) { s.MemoryMiB = 63 }, "hypervisor.memory_mib: "},
		"fewer vcpus at most":    {func(s *Spec) { s.VCPUs, s.MaxVCPUs = 4, 2 }, "hypervisor.max_vcpus: "},
		"too many at most":       {func(s *Spec) { s.MaxVCPUs = 256 }, "hypervisor.max_vcpus: "},
		"less memory at most":    {func(s *Spec) { s.MaxMemoryMiB = 127 }, "hypervisor.max_memory_mib: "},
		"negative slots":         {func(s *Spec) { s.DiskSlots = -1 }, "hypervisor.slots: "},
		"too many interfaces":    {func(s *Spec) { s.NICSlots = MaxNICSlots + 1 }, "network: "},
		"too many slots":         {func(s *Spec) { s.DiskSlots = MaxDiskSlots + 1 }, "hypervisor.slots: "},
		"blank in a parameter":   {func(s *Spec) { s.KernelParams = []string{"a b"} }, "guest.kernel_params: "},
		"newline in a parameter": {func(s *Spec) { s.KernelParams = []string{"a\nb"} }, "guest.kernel_params: "},
		"empty parameter":        {func(s *Spec) { s.KernelParams = []string{""} }, "guest.kernel_params: "},
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
	for _, option := range []string{"hypervisor.path", "guest.kernel", "guest.initrd", "state_dir", "hypervisor.vcpus", "hypervisor.memory_mib"} {
		if !strings.Contains(err.Error(), option+": ") {
			t.Errorf("%q is missing in %v", option, err)
		}
	}
}
