// Package uevent waits for disks and partitions to appear in the guest, and
// reads the kernel's events.
//
// A Finder opens an event socket for each wait and closes it before it returns.
// The package keeps no state, starts no goroutine that outlives a call and never
// polls. Of a disk it changes nothing; all it ever writes is the request to a
// SCSI controller to look for one unit. Finders may be used from any goroutine
// and at the same time.
package uevent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Finder finds disks by their place: that of their controller on the PCI bus,
// or their address at the SCSI controller.
type Finder struct {
	// Sys is where sysfs is mounted, Dev where devtmpfs is.
	Sys, Dev string
}

// Find returns the device node of a disk or of its partition, once it can be
// opened, and waits for it until ctx ends. A malformed disk gives
// errdefs.ErrInvalidArgument, one that does not come context.DeadlineExceeded.
func (f Finder) Find(ctx context.Context, d Disk) (string, error) {
	if err := d.Check(); err != nil {
		return "", err
	}
	// Most often the disk is there: a container has many layers on one.
	if node, err := f.lookup(d); node != "" || err != nil {
		return node, err
	}
	events, err := Listen()
	if err != nil {
		return "", fmt.Errorf("listen for the disk %s: %w", d, err)
	}
	defer events.Close()
	// Now that nothing is missed: the kernel does not look by itself for a
	// unit that was there before the controller's driver had been loaded.
	if d.Driver == SCSI {
		if err := f.scan(d); err != nil {
			return "", err
		}
	}
	for {
		node, err := f.lookup(d)
		if node != "" || err != nil {
			return node, err
		}
		if err := nextDisk(ctx, events); err != nil {
			return "", fmt.Errorf("wait for the disk %s to appear%s: %w", d, f.partitionsOf(d), err)
		}
	}
}

// nextDisk returns after the next event that may mean a new disk. What it says
// is not believed, only that sysfs is worth another look: that way neither a
// forged nor a lost event does harm.
func nextDisk(ctx context.Context, events *Events) error {
	for {
		event, err := events.Next(ctx)
		if err != nil || event.Lost || event.Get("SUBSYSTEM") == "block" {
			return err
		}
	}
}

// lookup returns the node, or "" when it is not there yet.
func (f Finder) lookup(d Disk) (string, error) {
	disk, err := f.sysDisk(d)
	if disk == "" || err != nil {
		return "", err
	}
	if d.Partition == 0 {
		return f.node(disk)
	}
	partition := partitionDir(disk, d.Partition)
	number, err := os.ReadFile(filepath.Join(partition, "partition"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(string(number)) != strconv.Itoa(d.Partition) {
		return "", fmt.Errorf("%s is partition %.16q and not %d", partition, number, d.Partition)
	}
	return f.node(partition)
}

// partitionDir is where sysfs shows a partition. Its name has a "p" in front of
// the number where that of the disk ends with a digit (block/genhd.c,
// disk_name).
func partitionDir(disk string, number int) string {
	name := filepath.Base(disk)
	if last := name[len(name)-1]; last >= '0' && last <= '9' {
		name += "p"
	}
	return filepath.Join(disk, name+strconv.Itoa(number))
}

// partitionsOf says, for an error, what is there instead of a partition.
func (f Finder) partitionsOf(d Disk) string {
	if d.Partition == 0 {
		return ""
	}
	disk, err := f.sysDisk(d)
	if disk == "" || err != nil {
		return " (nor is the disk there)"
	}
	found, err := filepath.Glob(filepath.Join(disk, "*", "partition"))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (the disk is there, the kernel found %d partitions on it)", len(found))
}

// sysDisk is where sysfs shows the whole disk, "" if it does not yet.
func (f Finder) sysDisk(d Disk) (string, error) {
	pattern := ""
	switch d.Driver {
	case SCSI:
		target, unit, err := d.scsi()
		if err != nil {
			return "", err
		}
		pattern = filepath.Join(f.Sys, "bus/scsi/devices", fmt.Sprintf("*:0:%d:%d", target, unit), "block", "*")
	default:
		dir, err := f.controller(d)
		if dir == "" || err != nil {
			return "", err
		}
		pattern = filepath.Join(dir, "virtio*", "block", "*")
	}
	return only(pattern, d)
}

// controller is where sysfs shows the PCI device of a disk.
func (f Finder) controller(d Disk) (string, error) {
	dir := filepath.Join(f.Sys, "devices", "pci0000:00")
	for _, slot := range d.slots() {
		// Domain and bus number are the guest's to give; the slot is the host's.
		next, err := only(filepath.Join(dir, "????:??:"+slot), d)
		if next == "" || err != nil {
			return "", err
		}
		dir = next
	}
	return dir, nil
}

// only returns the one name that matches, "" if there is none.
func only(pattern string, d Disk) (string, error) {
	found, err := filepath.Glob(pattern)
	switch {
	case err != nil:
		return "", fmt.Errorf("look for the disk %s: %w", d, err)
	case len(found) == 0:
		return "", nil
	case len(found) > 1:
		return "", fmt.Errorf("look for the disk %s: %d devices match %s", d, len(found), pattern)
	}
	return found[0], nil
}

// scan lets the virtio-scsi controller look for the unit, which is done when the
// write returns (drivers/scsi/scsi_sysfs.c, store_scan). Units that are plugged
// from then on announce themselves.
func (f Finder) scan(d Disk) error {
	target, unit, err := d.scsi()
	if err != nil {
		return err
	}
	hosts, err := filepath.Glob(filepath.Join(f.Sys, "class/scsi_host/host*"))
	if err != nil {
		return fmt.Errorf("look for the disk %s: %w", d, err)
	}
	for _, host := range hosts {
		driver, err := os.ReadFile(filepath.Join(host, "proc_name"))
		if err != nil || strings.TrimSpace(string(driver)) != "virtio_scsi" {
			continue
		}
		if err := os.WriteFile(filepath.Join(host, "scan"), fmt.Appendf(nil, "0 %d %d", target, unit), 0); err != nil {
			return fmt.Errorf("look for the disk %s: %w", d, err)
		}
	}
	return nil
}

// node returns the device node of a disk known to sysfs, or "" while devtmpfs
// does not have it. The numbers are compared, since the name alone could be a
// left-over.
func (f Finder) node(sysDisk string) (string, error) {
	text, err := os.ReadFile(filepath.Join(sysDisk, "dev"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		return "", fmt.Errorf("read %s/dev: %w", sysDisk, err)
	}
	node := filepath.Join(f.Dev, filepath.Base(sysDisk))
	var st unix.Stat_t
	if err := unix.Lstat(node, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return "", nil
		}
		return "", fmt.Errorf("stat %s: %w", node, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(major, minor) {
		return "", fmt.Errorf("%s is not the block device %d:%d that sysfs names", node, major, minor)
	}
	return opened(node)
}

// opened returns the node once it can be opened. The kernel makes the node some
// steps before the disk behind it, and announces the disk only afterwards
// (block/genhd.c, device_add_disk): in between an open gives ENXIO.
func opened(node string) (string, error) {
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENXIO):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("open %s: %w", node, err)
	}
	return node, unix.Close(fd)
}
