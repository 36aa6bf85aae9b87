package rootfs

import (
	"os"

	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// Mount is one rootfs mount as containerd puts it into CreateTaskRequest,
// field for field (containerd.types.Mount). It is untrusted: nothing in it has
// been checked.
type Mount struct {
	Type    string   `json:"type"`
	Source  string   `json:"source"`
	Target  string   `json:"target"`
	Options []string `json:"options"`
}

// Strategy says how the EROFS layers of an image become one disk.
type Strategy string

const (
	// StrategyRaw hands over a single lower without devices as it is.
	StrategyRaw Strategy = "raw"
	// StrategyMerged concatenates an fsmeta and the layers that its device
	// table names; the guest sees one EROFS filesystem.
	StrategyMerged Strategy = "merged"
	// StrategyPartitioned puts a partition table in front of the layers; the
	// guest sees a filesystem per partition.
	StrategyPartitioned Strategy = "partitioned"
)

// Role says what a disk is to the container.
type Role string

const (
	// RoleUpper is the writable ext4 image.
	RoleUpper Role = "upper"
	// RoleLayers is the read-only disk with the image's layers.
	RoleLayers Role = "layers"
)

// Driver is the format driver of QEMU that reads the disk.
type Driver string

const (
	// DriverRaw reads Disk.Path itself.
	DriverRaw Driver = "raw"
	// DriverVMDK reads a flat-extent descriptor made from Disk.Extents.
	DriverVMDK Driver = "vmdk"
)

// Disk is one block device that the VM is to get. It is plain data and owns
// nothing; the files that it names belong to the snapshotter or to the merge
// cache.
type Disk struct {
	Role     Role   `json:"role"`
	Driver   Driver `json:"driver"`
	Path     string `json:"path,omitempty"` // DriverRaw: the host file
	ReadOnly bool   `json:"readonly"`
	Bytes    int64  `json:"bytes"` // what the guest sees, a multiple of 512
	// Format is the filesystem to make at Path, where there is no file yet;
	// nil if there is.
	Format *Format `json:"format,omitempty"`
	// Extents are the pieces of a DriverVMDK disk, in order.
	Extents []vmdk.Extent `json:"extents,omitempty"`
	// Generated is the file behind those extents that have no path; nil if
	// there is none. Who makes the disk puts it beside the descriptor, see
	// vmdk.WriteDisk.
	Generated *vmdk.Generated `json:"-"`
	// Partitions are those of StrategyPartitioned, the topmost layer first.
	Partitions []Partition `json:"partitions,omitempty"`
}

// Partition is where a lower lies on a disk with a partition table.
type Partition struct {
	Number  int    `json:"number"` // as the guest's kernel counts, from 1
	Path    string `json:"path"`   // of the layer, or of the index
	Start   int64  `json:"start"`  // first sector
	Sectors int64  `json:"sectors"`
}

// UpperKind says where the writable layer is.
type UpperKind string

const (
	// UpperNone makes the root filesystem read-only.
	UpperNone UpperKind = "none"
	// UpperDisk is an ext4 image.
	UpperDisk UpperKind = "disk"
	// UpperMemory is a tmpfs of the guest, which is gone with the container.
	UpperMemory UpperKind = "memory"
)

// NoDisk is Storage.Disk of a storage that lies on none.
const NoDisk = -1

// Storage is one filesystem that the guest mounts from a disk to make the
// container's rootfs. Options are those of the agent protocol (X-kata.*
// included); the runtime adds the disk's address and the mount point.
type Storage struct {
	Disk    int      `json:"disk"` // index into Plan.Disks, or NoDisk
	FSType  string   `json:"fstype"`
	Options []string `json:"options"`
}

// Plan is what the mounts of one container become: disks for the VM and
// storages for the guest. Storages[0] is the upper, if there is one; the lowers
// follow, the topmost first. File and Close may be called from any goroutine.
type Plan struct {
	Strategy Strategy  `json:"strategy"`
	Reason   string    `json:"reason"`
	Upper    UpperKind `json:"upper"`
	Disks    []Disk    `json:"disks"`
	Storages []Storage `json:"storages"`
	Warnings []string  `json:"warnings"`

	held *files.Set // nil unless lent
}

// File is the open file behind a path of the plan, that of a Disk, an Extent or
// a Partition: the one that was checked, even if the name is another's by now.
// It is the plan's to close, and open for writing if it is the writable image.
// It is nil for a path that is not of the plan, for an image that is still to be
// made, after Close, and without Options.Lend.
func (plan *Plan) File(path string) *os.File {
	if plan.held == nil {
		return nil
	}
	return plan.held.Handle(path)
}

// Close closes the files of the plan, which it may do again. Who has been given
// them has duplicates of its own by then. Without Options.Lend it does nothing.
func (plan *Plan) Close() error {
	if plan.held == nil {
		return nil
	}
	return plan.held.Close()
}
