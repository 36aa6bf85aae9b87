package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
	"github.com/erofsvm/erofsvm/test/bench/figures"
)

// extentCounts of the disks that are plugged. Each extent has a file of its own.
var extentCounts = [...]int{1, 10, 100, 300}

// sectorsPerExtent of the disks that are plugged.
const sectorsPerExtent = 128

// plugging measures what it takes to plug in a disk (the files handed over,
// blockdev-add, device_add) and to unplug it, while a guest waits.
func (b *bench) plugging(ctx context.Context) (err error) {
	vm, err := qemu.Start(ctx, qemu.Spec{
		Dir:      filepath.Join(b.dir, "vm"),
		CacheDir: b.tree.Build("run", "cache", "host"),
		Binary:   b.tree.QEMU(), VCPUs: 1, MemoryMiB: 512, DiskSlots: 31,
		Kernel: b.tree.Kernel(), Initrd: b.tree.Initrd(), VsockDaemon: b.tree.VhostDeviceVsock(),
	})
	if err != nil {
		return err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), step)
		defer cancel()
		err = errors.Join(err, vm.Kill(ending))
	}()
	booted, cancel := context.WithTimeout(ctx, boot)
	defer cancel()
	if err := vm.WaitReady(booted); err != nil {
		return err
	}
	accelerator, _ := vm.Accelerator()
	b.report.Host += fmt.Sprintf(" Accelerator: %s.", accelerator)
	disks, err := b.makeDisks()
	if err != nil {
		return err
	}
	defer func() {
		for _, d := range disks {
			err = errors.Join(err, d.close())
		}
	}()
	return b.plugAll(ctx, vm, disks)
}

// plugAll plugs each disk in and out again, the two ways in turn. The first round
// warms up.
func (b *bench) plugAll(ctx context.Context, vm *qemu.Machine, disks []*extents) error {
	in := b.report.Table("plug in a VMDK", "ms").Draw(figures.Lines, "plug", "extents")
	out := b.report.Table("unplug it, a guest of one processor letting go", "ms")
	for round := range often*b.runs + 1 {
		for _, d := range disks {
			against := ""
			for _, way := range []struct {
				name string
				disk hypervisor.Disk
			}{{"open files", d.byFiles()}, {"paths", d.byPath()}} {
				plugged, unplugged, err := plug(ctx, vm, way.disk)
				if err != nil {
					return err
				}
				if round == 0 {
					continue // warms up
				}
				name := count(d.n, "extent") + ", " + way.name
				in.Row(name, against).At(way.name, float64(d.n)).Add(plugged)
				out.Row(name, against).Add(unplugged)
				against = name
			}
		}
	}
	return nil
}

// plug plugs a disk in and out, and says how many milliseconds each took.
func plug(ctx context.Context, vm *qemu.Machine, d hypervisor.Disk) (in, out float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	d.ID = "bench"
	begun := time.Now()
	if _, err := vm.Attach(ctx, d); err != nil {
		return 0, 0, err
	}
	in = milliseconds(time.Since(begun))
	begun = time.Now()
	err = vm.Detach(ctx, d.ID)
	return in, milliseconds(time.Since(begun)), err
}

// extents are n files and a disk of them.
type extents struct {
	n          int
	files      []*os.File
	descriptor string // path of one that names the files
}

// makeDisks makes a disk for each number of extents, of the same files.
func (b *bench) makeDisks() ([]*extents, error) {
	dir := filepath.Join(b.dir, "extents")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	paths := make([]string, extentCounts[len(extentCounts)-1])
	for i := range paths {
		paths[i] = filepath.Join(dir, fmt.Sprintf("%d", i))
		if err := os.WriteFile(paths[i], make([]byte, sectorsPerExtent*512), 0o644); err != nil {
			return nil, err
		}
	}
	var disks []*extents
	for _, n := range extentCounts {
		d := &extents{n: n}
		disks = append(disks, d)
		for _, path := range paths[:n] {
			f, err := os.Open(path)
			if err != nil {
				return disks, err
			}
			d.files = append(d.files, f)
		}
		var err error
		if d.descriptor, err = vmdk.Write(dir, fmt.Sprintf("%d.vmdk", n), d.extents(paths[:n])); err != nil {
			return disks, err
		}
	}
	return disks, nil
}

func (d *extents) extents(names []string) []vmdk.Extent {
	list := make([]vmdk.Extent, len(names))
	for i, name := range names {
		list[i] = vmdk.Extent{Path: name, Sectors: sectorsPerExtent}
	}
	return list
}

func (d *extents) byFiles() hypervisor.Disk {
	return hypervisor.Disk{
		Driver: hypervisor.DriverVMDK, Path: "bench.vmdk", ReadOnly: true, Files: d.files,
		Descriptor: func(names []string) ([]byte, error) { return vmdk.Descriptor(d.extents(names)) },
	}
}

func (d *extents) byPath() hypervisor.Disk {
	return hypervisor.Disk{Driver: hypervisor.DriverVMDK, Path: d.descriptor, ReadOnly: true}
}

func (d *extents) close() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
