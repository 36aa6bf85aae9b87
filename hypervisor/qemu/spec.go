package qemu

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// Accelerator says what executes the guest's instructions.
type Accelerator string

const (
	// AcceleratorAuto takes KVM if a VM was seen to run with it, else TCG.
	AcceleratorAuto Accelerator = "auto"
	AcceleratorKVM  Accelerator = "kvm"
	AcceleratorTCG  Accelerator = "tcg"
)

// AIO is how QEMU reads and writes the files behind disks.
type AIO string

const (
	// AIOThreads works everywhere and is the default.
	AIOThreads AIO = "threads"
	// AIOURing is taken if QEMU can open a file with it on this host, else
	// AIOThreads: a host may forbid io_uring.
	AIOURing AIO = "io_uring"
	// AIONative needs CacheDirect.
	AIONative AIO = "native"
)

const (
	// MaxDiskSlots is the largest number of disks a VM can be given at once.
	MaxDiskSlots = maxDiskBridges * slotsPerBridge
	// MaxNICSlots is that of network interfaces.
	MaxNICSlots = slotsPerBridge

	// maxVCPUs is what q35 takes without interrupt remapping.
	maxVCPUs = 255
	// maxIOThreads is more than anybody has use for.
	maxIOThreads = 16
	// minMemoryMiB is below what the distribution's kernel needs to unpack an
	// initramfs.
	minMemoryMiB = 64
)

// Spec is everything there is to know to start a VM. It is plain data: nothing
// that the guest could see names a pod, and two VMs of one configuration differ
// in Dir, NetNS and From alone.
type Spec struct {
	// Dir is the VM's private directory, an absolute path that does not
	// exist or is empty; Start makes it (mode 0700) and the end of the VM
	// removes it. Sockets lie in it, so it must be short: a socket path holds
	// at most 107 bytes.
	Dir string
	// CacheDir keeps what was found out about the host (accelerator, aio) for
	// the next VM, mode 0700. Empty: asked again each time.
	CacheDir string

	// Binary is qemu-system-x86_64, an absolute path.
	Binary string
	// Machine is the machine type, "q35" or a versioned "pc-q35-…"; empty is q35.
	Machine string
	// Accelerator is empty for AcceleratorAuto.
	Accelerator Accelerator
	VCPUs       int
	MemoryMiB   int
	// MaxVCPUs and MaxMemoryMiB are how large AddCPUs and AddMemory can make the
	// VM; 0 is what it begins with. Memory comes in whole blocks of 128 MiB.
	// Under TCG MaxVCPUs has no meaning, see Machine.Limits.
	MaxVCPUs     int
	MaxMemoryMiB int

	// Reclaim has the guest report memory that it does not use, which the host then has
	// back. Without it what a guest has once had stays the VM's.
	Reclaim bool

	// Kernel is a bzImage, or an uncompressed ELF vmlinux with a PVH note.
	Kernel string
	Initrd string
	// KernelParams follow the parameters that this package sets itself.
	KernelParams []string

	// DiskSlots is how many disks can be attached at once. They are reserved
	// when the VM boots.
	DiskSlots int
	// NICSlots is how many network interfaces can be attached at once. They have
	// places of their own, behind those of the disks, so that neither takes what
	// was promised to the other.
	NICSlots int
	// BlockDriver is empty for VirtioBlk.
	BlockDriver BlockDriver
	// AIO is empty for AIOThreads.
	AIO AIO
	// CacheDirect opens the files behind disks with O_DIRECT.
	CacheDirect bool
	// IOThreads is how many threads serve the disks, which are dealt out to them by
	// their slots. With 0 QEMU's main thread does, and always those of VirtioSCSI.
	IOThreads int

	// Vsock chooses the vsock device; empty is vsock.Auto.
	Vsock vsock.Kind
	// VsockDaemon is vhost-device-vsock, an absolute path; needed where the
	// host has no /dev/vhost-vsock.
	VsockDaemon string

	// Virtiofsd, if set, is the daemon that shares are served by, an absolute path:
	// the VM's memory is shared with it, and AttachShare works.
	Virtiofsd string

	// NetNS is the network namespace that QEMU runs in, nil for that of the caller,
	// whose file it stays. The daemons stay outside: they need no network.
	NetNS *os.File `json:"-"`

	// From, if set, is a VM of the same description (see Describe) that Save wrote,
	// open for reading: Start does not boot but goes on from there, and the guest
	// stands still until Run.
	From Saved `json:"-"`

	// OnStarted, if set, is called by Start as soon as the processes of the VM
	// exist, so that the caller can write the record where Cleanup finds it after
	// a crash; and by AttachShare, once there is one more. Calls do not overlap.
	// An error ends the start, or the attachment.
	OnStarted func(Record) error `json:"-"`

	// stopped keeps the guest from running (-S), for tests of what QEMU does
	// without one.
	stopped bool
	// saving has no vsock device made, and waits for a guest that wants none.
	saving bool
	// into is where memory lies that is saved as it is.
	into *os.File
	// mute has no vsock device plugged into a VM that goes on, for tests on a host that
	// can make none of the kind.
	mute bool
	// generation is that of the VM, for one that is saved or goes on.
	generation string
	// decided is the accelerator, once Describe has chosen it.
	decided accelChoice
	// disguised has the guest of a TCG without KVM take processors, for tests,
	// see disguise.
	disguised bool
}

// ErrSpec is wrapped by every error about a Spec that Start refuses before it
// has made anything.
var ErrSpec = errors.New("invalid virtual machine configuration")

var machineName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(pc-)?q35(-[0-9]+\.[0-9]+)?$`)
})

// withDefaults fills in what is empty.
func (s Spec) withDefaults() Spec {
	if s.Machine == "" {
		s.Machine = "q35"
	}
	if s.Accelerator == "" {
		s.Accelerator = AcceleratorAuto
	}
	s.MaxVCPUs = cmp.Or(s.MaxVCPUs, s.VCPUs)
	s.MaxMemoryMiB = cmp.Or(s.MaxMemoryMiB, s.MemoryMiB)
	if more := s.MaxMemoryMiB - s.MemoryMiB; more > 0 {
		s.MaxMemoryMiB -= more % memoryBlockMiB
	}
	if s.BlockDriver == "" {
		s.BlockDriver = VirtioBlk
	}
	if s.AIO == "" {
		s.AIO = AIOThreads
	}
	if s.Vsock == "" {
		s.Vsock = vsock.Auto
	}
	return s
}

// settled is s with what depends on the accelerator.
func (s Spec) settled(accel Accelerator) Spec {
	if accel == AcceleratorTCG && !s.disguised {
		s.MaxVCPUs = s.VCPUs
	}
	return s
}

// validate says everything that is wrong with s, each with the key of the
// configuration to change.
// It looks at the files but opens none.
func (s Spec) validate() error {
	var errs []error
	bad := func(option, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s: %s", ErrSpec, option, fmt.Sprintf(format, args...)))
	}
	file := func(option, path string, executable bool) {
		if err := plainFile(path, executable); err != nil {
			errs = append(errs, fmt.Errorf("%w: %s: %w", ErrSpec, option, err))
		}
	}

	file("hypervisor.path", s.Binary, true)
	if s.Virtiofsd != "" {
		file("mounts.virtiofsd", s.Virtiofsd, true)
	}
	file("guest.kernel", s.Kernel, false)
	file("guest.initrd", s.Initrd, false)
	if err := cleanPath(s.Dir); err != nil {
		bad("state_dir", "%v", err)
	}
	if s.CacheDir != "" {
		if err := cleanPath(s.CacheDir); err != nil {
			bad("cache_dir", "%v", err)
		}
	}
	if !machineName().MatchString(s.Machine) {
		bad("hypervisor.machine", "%q is not q35 or a versioned pc-q35", s.Machine)
	}
	switch s.Accelerator {
	case AcceleratorAuto, AcceleratorKVM, AcceleratorTCG:
	default:
		bad("hypervisor.accelerator", "%q is not auto, kvm or tcg", s.Accelerator)
	}
	if s.BlockDriver != VirtioBlk && s.BlockDriver != VirtioSCSI {
		bad("hypervisor.block_driver", "%q is not virtio-blk or virtio-scsi", s.BlockDriver)
	}
	switch s.AIO {
	case AIOThreads, AIOURing:
	case AIONative:
		if !s.CacheDirect {
			bad("hypervisor.aio", "native needs direct I/O (hypervisor.cache = \"none\")")
		}
	default:
		bad("hypervisor.aio", "%q is not threads, io_uring or native", s.AIO)
	}
	if s.IOThreads < 0 || s.IOThreads > maxIOThreads {
		bad("hypervisor.iothreads", "%d is not between 0 and %d", s.IOThreads, maxIOThreads)
	}
	if s.VCPUs < 1 || s.VCPUs > maxVCPUs {
		bad("hypervisor.vcpus", "%d is not between 1 and %d", s.VCPUs, maxVCPUs)
	}
	if s.MemoryMiB < minMemoryMiB {
		bad("hypervisor.memory_mib", "%d MiB is less than %d MiB", s.MemoryMiB, minMemoryMiB)
	}
	if s.MaxVCPUs != s.VCPUs && (s.MaxVCPUs < s.VCPUs || s.MaxVCPUs > maxVCPUs) {
		bad("hypervisor.max_vcpus", "%d is not between hypervisor.vcpus (%d) and %d", s.MaxVCPUs, s.VCPUs, maxVCPUs)
	}
	if s.MaxMemoryMiB < s.MemoryMiB {
		bad("hypervisor.max_memory_mib", "%d MiB is less than hypervisor.memory_mib (%d MiB)", s.MaxMemoryMiB, s.MemoryMiB)
	}
	if s.DiskSlots < 0 || s.DiskSlots > MaxDiskSlots {
		bad("hypervisor.slots", "%d is not between 0 and %d", s.DiskSlots, MaxDiskSlots)
	}
	if s.NICSlots < 0 || s.NICSlots > MaxNICSlots {
		bad("network", "%d places for interfaces are not between 0 and %d", s.NICSlots, MaxNICSlots)
	}
	for _, p := range s.KernelParams {
		if p == "" || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			bad("guest.kernel_params", "%q is empty or has a blank or a control character", p)
		}
	}
	return errors.Join(errs...)
}

// plainFile refuses what is not a regular file under a path that QEMU takes as
// it stands.
func plainFile(path string, executable bool) error {
	if err := cleanPath(path); err != nil {
		return err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	if executable && fi.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("%s is not executable", path)
	}
	return nil
}

// cleanPath refuses a path that is not absolute, or whose meaning could change
// on the way to QEMU (a newline in its messages, a NUL, a ".." element).
func cleanPath(path string) error {
	switch {
	case path == "":
		return errors.New("no path is set")
	case !filepath.IsAbs(path) || filepath.Clean(path) != path:
		return fmt.Errorf("%q is not a clean absolute path", path)
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%q has a control character", path)
	}
	return nil
}
