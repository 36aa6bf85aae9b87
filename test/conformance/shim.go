package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/test/conformance/place"
	"github.com/erofsvm/erofsvm/test/harness"
)

// newPlace is a place with the shim's configuration in /etc and with a /run and a
// /tmp of its own.
func (b *bench) newPlace(name string) (place.Place, error) {
	p := place.Place{Dir: b.tree.Build("conformance", name), Dirs: []string{"/run", "/tmp"}}
	config := b.tree.Build("conformance", "configuration.toml")
	err := harness.ShimConfig{}.
		Set("", "cache_dir", b.cache()).
		Set("hypervisor", "path", b.tree.QEMU()).
		Set("guest", "kernel", b.tree.Kernel()).
		Set("guest", "initrd", b.tree.Initrd()).
		Set("vsock", "device_path", b.tree.VhostDeviceVsock()).
		Set("rootfs", "mkfs_erofs", b.tree.MkfsErofs()).
		// Cgroups would outlive the place.
		Set("host", "cgroup", "inherit").
		// shimtest's BindMountRead mounts a file of 64 MiB.
		Set("mounts", "copy_mib", 96).
		Set("log", "level", "debug").
		Write(config)
	if err != nil {
		return p, err
	}
	text, err := os.ReadFile(config)
	p.Etc = map[string]string{"erofsvm/configuration.toml": string(text)}
	return p, err
}

// cache is the shim's cache_dir, which is kept for the next run.
func (b *bench) cache() string { return b.tree.Build("conformance", "cache") }

// emulated says whether the processor of the guests will be emulated. It starts a
// VM to see, since that is for QEMU to find out, and ends it before it boots.
func (b *bench) emulated() (_ bool, err error) {
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	vm, err := qemu.Start(ctx, qemu.Spec{
		Dir: filepath.Join(dir, "vm"), CacheDir: filepath.Join(b.cache(), "host"),
		Binary: b.tree.QEMU(), Kernel: b.tree.Kernel(), Initrd: b.tree.Initrd(), VsockDaemon: b.tree.VhostDeviceVsock(),
		VCPUs: 1, MemoryMiB: 256, DiskSlots: 2,
	})
	if err != nil {
		return false, err
	}
	accelerator, _ := vm.Accelerator()
	return accelerator == qemu.AcceleratorTCG, vm.Kill(ctx)
}
