package qemu

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/erofsvm/erofsvm/hypervisor"
)

// BlockDriver is the kind of device that the guest sees a disk as.
type BlockDriver string

const (
	// VirtioBlk makes each disk a PCI device of its own, which comes and goes
	// by ACPI hot-plug: an unplug waits until the guest's kernel has ejected it.
	VirtioBlk BlockDriver = "virtio-blk"
	// VirtioSCSI puts all disks on one controller, as targets 0 to 247 with
	// one unit at a time each. QEMU unplugs a disk at once and tells the guest
	// afterwards (hw/scsi/virtio-scsi.c, virtio_scsi_hotunplug), so that all are
	// served by QEMU's main thread, which also unplugs them, and that each has
	// an address of its own.
	VirtioSCSI BlockDriver = "virtio-scsi"
)

// disksWithVectors is how many virtio-blk disks at once have interrupts of their
// own: one for each queue, of which QEMU makes one for each processor, and one
// more. A guest's processor has some 200 to give away, and when the last is gone
// the next device gets nothing, not even a line to share: its driver fails with
// ENOSPC, of which nobody on the host hears. One processor has too few for 128
// disks, and 248 are too many for any number of processors.
// Further disks share interrupt lines, at the cost of asking each disk on the
// line whether it was that one.
const disksWithVectors = 64

// attachment says where the guest finds the disk in s.
func (b BlockDriver) attachment(s slot) hypervisor.Attachment {
	if b == VirtioSCSI {
		return hypervisor.Attachment{SCSI: fmt.Sprintf("%d:%d", s.target(), s.lun())}
	}
	return hypervisor.Attachment{PCIPath: s.pciPath()}
}

// after is the slot that s is when its device is gone.
func (b BlockDriver) after(s slot) slot {
	if b == VirtioSCSI {
		return s.nextLUN()
	}
	return s
}

// place names the slot in an error.
func (b BlockDriver) place(s slot) string {
	at := b.attachment(s)
	return at.PCIPath + at.SCSI
}

// device is the argument of device_add. A write that fails on the host fails in
// the guest: by default (werror=enospc) a full filesystem would stop the whole
// VM until somebody resumes it.
func (b BlockDriver) device(d *disk) map[string]any {
	options := map[string]any{
		"id": d.name, "drive": d.nodeName(), "serial": d.id,
		"werror": "report", "rerror": "report",
	}
	if b == VirtioSCSI {
		maps.Copy(options, map[string]any{
			"driver": "scsi-hd", "bus": scsiBus, "scsi-id": d.slot.target(), "lun": d.slot.lun(),
			// Not a disk that turns, so that the guest does not sort requests.
			"rotation_rate": 1,
		})
	} else {
		maps.Copy(options, map[string]any{
			"driver": "virtio-blk-pci", "bus": d.slot.bus(), "addr": d.slot.addr(), "disable-legacy": "on",
		})
		if d.thread != "" {
			options["iothread"] = d.thread
		}
		if !d.vectors {
			options["vectors"], options["num-queues"] = 0, 1
		}
	}
	return options
}

// node is the argument of blockdev-add for a disk that QEMU opens as name
// (qapi/block-core.json, BlockdevOptions). What the guest discards is given back
// to the host's filesystem, and zeros that it writes stay written
// (detect-zeroes is off by default).
//
// The extents of a VMDK inherit the cache mode of the format's node and are
// always opened with aio=threads. The descriptor is read once, and may lie in
// memory, where O_DIRECT can be refused.
//
// What QEMU takes anyway is not said (auto-read-only and cache.no-flush are
// off): it reads its monitor byte by byte, three system calls for each
// (monitor_can_read in monitor/monitor.c), so that words cost more than the open.
func node(d *disk, want hypervisor.Disk, name string, aio AIO, direct bool) map[string]any {
	options := func(driver string, direct bool) map[string]any {
		o := map[string]any{"driver": driver}
		if want.ReadOnly {
			o["read-only"] = true
		} else {
			o["discard"] = "unmap" // else ignored
		}
		if direct {
			o["cache"] = map[string]any{"direct": true}
		}
		return o
	}
	protocol := "file" // which takes regular files alone (block/file-posix.c, raw_open_common)
	if isBlock(want) {
		protocol = "host_device"
	}
	file := options(protocol, direct && want.Driver == hypervisor.DriverRaw)
	file["filename"] = name
	if direct && want.Driver != hypervisor.DriverRaw {
		file["cache"] = map[string]any{"direct": false} // which it would inherit, too
	}
	if want.Driver == hypervisor.DriverRaw && aio != AIOThreads {
		file["aio"] = aio
	}
	format := options(string(want.Driver), direct)
	format["node-name"], format["file"] = d.nodeName(), file
	return format
}

var errDiskID = errors.New("the ID must be 1 to 20 letters, digits and '-', and not begin with '-'")

// checkDisk refuses what QEMU must not be asked for.
func checkDisk(d hypervisor.Disk) error {
	if !isDiskID(d.ID) {
		return errDiskID
	}
	if err := checkFormat(d); err != nil || len(d.Files) > 0 {
		return err
	}
	if err := cleanPath(d.Path); err != nil {
		return err
	}
	if len(d.Path) > maxImagePath {
		return fmt.Errorf("the path has %d bytes, and %d are allowed", len(d.Path), maxImagePath)
	}
	// QEMU would wait for ever for the writer of a FIFO.
	fi, err := os.Stat(d.Path)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	return nil
}

func checkFormat(d hypervisor.Disk) error {
	switch d.Driver {
	case hypervisor.DriverRaw:
		if len(d.Files) > 1 || d.Descriptor != nil {
			return fmt.Errorf("a raw disk is one file without a descriptor, and not %d", len(d.Files))
		}
	case hypervisor.DriverVMDK:
		if !d.ReadOnly {
			return errors.New("a vmdk disk must be read-only: its extents are image layers")
		}
		if isBlock(d) {
			return errors.New("an extent of a vmdk disk must be a regular file")
		}
		if (len(d.Files) > 0) != (d.Descriptor != nil) {
			return errors.New("a vmdk disk of open files needs a descriptor, and one of paths takes none")
		}
	default:
		return fmt.Errorf("driver %q is not raw or vmdk", d.Driver)
	}
	return nil
}

// isBlock says whether a disk has a block device of the host among its files.
func isBlock(d hypervisor.Disk) bool {
	return slices.ContainsFunc(d.Files, func(f *os.File) bool {
		info, err := f.Stat()
		return err == nil && info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
	})
}
