package uevent

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/guest/token"
)

// Driver says on which bus a disk is, in the words of the agent protocol.
type Driver string

const (
	// Block is a virtio-blk disk; its source is a PCI path.
	Block Driver = "blk"
	// SCSI is a disk of the virtio-scsi controller; its source is "<id>:<lun>".
	SCSI Driver = "scsi"
)

// MaxPartition is the highest number of a partition: DISK_MAX_PARTS of Linux
// (include/linux/blkdev.h) is 256 and counts the whole disk as one.
const MaxPartition = 255

// Disk names a disk, or one partition of it, as the agent protocol does.
type Disk struct {
	Driver    Driver
	Source    string
	Partition int // from 1; 0 is the whole disk
}

// String is how errors and logs name the disk.
func (d Disk) String() string {
	name := d.Source
	if d.Driver == SCSI {
		name = "scsi " + name
	}
	if d.Partition != 0 {
		name = fmt.Sprintf("%s partition %d", name, d.Partition)
	}
	return name
}

// maxSteps bounds how far a disk is from the root bus.
const maxSteps = 8

// isPCIPath says that s is one or more slots in hexadecimal from the root bus to the
// device, each with an optional function.
func isPCIPath(s string) bool {
	steps := 0
	for step := range strings.SplitSeq(s, "/") {
		slot, function, has := strings.Cut(step, ".")
		if steps++; steps > maxSteps || !token.Of(slot, 2, 2, token.Hex) || has && !token.Of(function, 1, 1, token.Octal) {
			return false
		}
	}
	return true
}

// scsiAddress is a target and a unit, in decimal. virtio-scsi has 256 and 16384 of
// them (Virtual I/O Device specification 1.2, 5.6.6.1). It is compiled when it is
// first used: that costs a start nothing.
var scsiAddress = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(0|[1-9][0-9]{0,2}):(0|[1-9][0-9]{0,4})$`)
})

// Check refuses, with errdefs.ErrInvalidArgument, what names no disk that could
// be.
func (d Disk) Check() error {
	switch d.Driver {
	case Block:
		if !isPCIPath(d.Source) {
			return fmt.Errorf("source %.64q is not a PCI path like \"02/00\": %w", d.Source, errdefs.ErrInvalidArgument)
		}
	case SCSI:
		if _, _, err := d.scsi(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("driver %.64q of a disk, %q and %q are there: %w", d.Driver, Block, SCSI, errdefs.ErrNotImplemented)
	}
	if d.Partition < 0 || d.Partition > MaxPartition {
		return fmt.Errorf("partition %d, a disk has 1 to %d: %w", d.Partition, MaxPartition, errdefs.ErrInvalidArgument)
	}
	return nil
}

// slots are the steps from the root bus, each with its function.
func (d Disk) slots() []string {
	slots := strings.Split(d.Source, "/")
	for i, slot := range slots {
		if !strings.Contains(slot, ".") {
			slots[i] = slot + ".0"
		}
	}
	return slots
}

func (d Disk) scsi() (target, unit int, err error) {
	if scsiAddress().MatchString(d.Source) {
		_, err = fmt.Sscanf(d.Source, "%d:%d", &target, &unit)
		if err == nil && target < 256 && unit < 16384 {
			return target, unit, nil
		}
	}
	return 0, 0, fmt.Errorf("source %.64q is not \"<target>:<unit>\", below 256 and 16384: %w", d.Source, errdefs.ErrInvalidArgument)
}
