// Package hypervisor describes a virtual machine as a value: what may be asked
// of it, when, and what comes back. The machine itself is made by
// hypervisor/qemu.
//
// The package owns no process and starts no goroutine. It knows nothing of
// images, containers or the agent's protocol: a disk is a file with a driver, a
// connection is a stream to a vsock port.
package hypervisor

import (
	"context"
	"errors"
	"net"
	"os"
)

// ErrGone is returned by every method of a VM whose process has ended.
var ErrGone = errors.New("virtual machine is gone")

// MemoryBlockMiB is what AddMemory adds memory in: Linux takes it in blocks of
// that size, in a VM that booted with less than 64 GiB
// (arch/x86/mm/init_64.c, probe_memory_block_size).
const MemoryBlockMiB = 128

// Driver is a format driver of QEMU's block layer.
type Driver string

const (
	DriverRaw  Driver = "raw"  // the file is the disk
	DriverVMDK Driver = "vmdk" // the file is a flat-extent descriptor
)

// Disk is a block device to attach.
//
// With Files the hypervisor is given open files, and looks up no path: what is
// renamed, replaced or removed after the caller opened them makes no difference.
// Without, it opens Path, and a vmdk's extents, by their paths, which then must
// lead to the same files until the disk is detached.
type Disk struct {
	ID       string // unique within the VM; 1 to 20 letters, digits and '-', not first a '-': it is also the serial the guest sees
	Driver   Driver
	Path     string // absolute; with Files it only names the disk in errors
	ReadOnly bool

	// Files are regular files (a memfd is one): of a raw disk one, the image, which
	// may be a block device of the host instead;
	// of a vmdk those that its extents are ranges of. They are open for
	// reading, and for writing too unless ReadOnly. They stay the caller's,
	// who may close them once Attach has returned: the VM has them opened anew,
	// until the disk is detached or the VM ends.
	Files []*os.File
	// Descriptor returns the text of a vmdk's descriptor, given the names by
	// which QEMU knows Files, in their order. It names no other file. It is
	// set exactly if Driver is DriverVMDK and there are Files, and is called
	// at most once, by Attach, from the goroutine that called that.
	Descriptor func(names []string) ([]byte, error)
}

// NIC is a network interface to attach.
type NIC struct {
	ID  string // as of a disk, and unique among the NICs
	MAC net.HardwareAddr
	// MTU is the largest that the guest may set, and what it sets at first; 0
	// lets it choose.
	MTU int
	// Queues are descriptors of one tap device, one for each pair of queues, which
	// carry frames with a virtio-net header in front (IFF_VNET_HDR). They
	// stay the caller's, who may close them once AttachNIC has returned.
	Queues []*os.File
	// Vhost are as many descriptors of /dev/vhost-net, or none: QEMU then
	// carries the frames itself. They stay the caller's as well.
	Vhost []*os.File
}

// Attachment says where the guest finds a device. One of the two is set, by the
// kind of device that the VM's disks are.
type Attachment struct {
	// PCIPath is the path of a virtio-blk device from the root bus, slots in hex
	// joined by '/', as the agent protocol writes it ("02/00": slot 0 behind
	// the bridge at slot 2).
	PCIPath string
	// SCSI is the place of a disk on the VM's one SCSI bus, "<id>:<lun>" in
	// decimal.
	SCSI string
}

// Share is files and directories of the host that the guest may mount, as one
// filesystem of type virtiofs with the ID as its tag.
type Share struct {
	ID      string // as a Disk's, and unique among disks too
	Entries []ShareEntry
	// Hide are types of filesystems, in the words of proc_pid_mountinfo(5), that
	// the guest does not see where they are mounted below an entry.
	Hide []string
}

// ShareEntry is one file or directory, under a name at the root of the filesystem.
// The guest reaches nothing above it, whatever it does.
type ShareEntry struct {
	Name string // 1 to 64 letters, digits and '-', not first a '-'; unique in the share
	// Tree is a mount of the file or directory that is attached nowhere, of
	// open_tree(2) with OPEN_TREE_CLONE. It stays the caller's, to close once
	// AttachShare has returned, and cannot be used for a second one.
	Tree *os.File
	// ReadOnly is held to by the host, for what is mounted in the tree too.
	ReadOnly bool
	// Receive shows the guest also what the host mounts below the tree later.
	Receive bool
}

// VM is one running virtual machine. Methods may be called from any goroutine
// and at the same time. Each of them returns when its context ends, and with an
// error that wraps ErrGone when the VM ends first.
type VM interface {
	// Attach hot-plugs a disk; legal from the first moment, while the guest
	// boots. It returns when QEMU has the disk, and the guest may find it later.
	// Where no slot is free but those given back just now, it first waits for one.
	// On an error nothing of the disk stays behind.
	Attach(ctx context.Context, d Disk) (Attachment, error)
	// AttachShare hot-plugs a share, as Attach does a disk. While it is attached a
	// process of the host serves it; if that ends, so does the VM, since whoever
	// waits for a file in the guest would wait for ever.
	AttachShare(ctx context.Context, s Share) error
	// Detach unplugs a disk or a share and waits until the guest has let go of it,
	// which it does whether or not it is mounted: the caller has it unmounted
	// first. Detaching what is not attached is no error. After an error it may
	// be half gone, and a further call goes on with it.
	Detach(ctx context.Context, id string) error
	// AttachNIC hot-plugs a network interface; legal from the first moment. The
	// guest, which may find it later, knows it by its MAC, and by its place, which
	// is a PCIPath with every kind of disk. On an error nothing of it stays behind.
	AttachNIC(ctx context.Context, n NIC) (Attachment, error)
	// DetachNIC unplugs a network interface and waits until the guest has let go
	// of it. One that is not attached is no error. After an error it may be
	// half gone, and a further call goes on with it.
	DetachNIC(ctx context.Context, id string) error
	// Limits is the largest size that AddCPUs and AddMemory can give the VM; at
	// least what it has.
	Limits() (vcpus, memoryMiB int)
	// AddCPUs plugs processors in until the VM has total of them; one that has
	// as many is left alone. It returns how many the VM has, with an error too.
	// The guest may find them later, and has to bring them online by itself.
	// Legal after WaitReady; there is no way back.
	AddCPUs(ctx context.Context, total int) (vcpus int, err error)
	// AddMemory plugs memory in, in blocks of MemoryBlockMiB, until the VM has
	// totalMiB or more, and waits until the guest has taken it; what it has
	// already is left alone. It returns how much the VM has, with an error too: memory that the guest has
	// not taken in time is plugged in all the same, and a further call waits for
	// it again. Legal after WaitReady; there is no way back.
	AddMemory(ctx context.Context, totalMiB int) (memoryMiB int, err error)
	// WaitReady waits until the agent in the guest listens. When it gives up,
	// the VM is still there, for the caller to Kill; the error has the tails
	// that Tail returns.
	WaitReady(ctx context.Context) error
	// Dial connects to a vsock port of the guest; legal after WaitReady.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Pid is QEMU's process id on the host; it stays the same after the end.
	Pid() int
	// Done is closed when the VM has ended and its process is reaped.
	Done() <-chan struct{}
	// Err says why the VM ended, with the tails of the console and of QEMU's
	// stderr, and wraps ErrGone; nil before Done is closed and after a Kill.
	Err() error
	// Tail returns the last lines of the guest's console and of QEMU's stderr.
	Tail() string
	// Kill ends the VM at once, waits until its processes are reaped and its
	// sockets and files are gone. It may be called more than once.
	Kill(ctx context.Context) error
}
