package qemu

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// Descriptors that QEMU inherits, in the order of exec.Cmd.ExtraFiles.
const (
	fdQMP = 3 + iota
	fdConsole
	fdVsock
	fdMemory
)

// Where devices sit on the root bus. The numbers are fixed, so that a guest sees
// the same machine whatever it is configured with; 0x00 is the host bridge and
// 0x1f the chipset's.
const (
	addrVsock  = 0x01
	addrRNG    = 0x02
	addrSCSI   = 0x03
	addrMemory = 0x04
	addrBridge = 0x08 // and following

	// A bridge has 32 places, and SHPC would take the first of them
	// (hw/pci/shpc.c, SHPC_IDX_TO_PCI); it stays empty so that it does not
	// matter which hot-plug controller the guest's kernel prefers.
	firstSlot      = 1
	slotsPerBridge = 31
	maxDiskBridges = 8
)

// sandbox is QEMU's own seccomp filter: it forks nothing and changes neither its
// user nor its scheduling (qemu-seccomp.c).
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// consoleParams keep the console silent, since the emulated serial port takes time for
// every character, but for what the kernel says when it dies; and make it end
// the VM then, by a reset, which -no-reboot turns into QEMU's exit.
var consoleParams = []string{"console=ttyS0", "quiet", "panic=-1"}

// timerParams: the kernel counts ticks of the emulated timer in a loop of
// instructions, and panics when an emulated or overloaded CPU shows it too few
// (arch/x86/kernel/apic/io_apic.c, check_timer). There is no such hardware bug
// here.
var timerParams = []string{"no_timer_check"}

// memoryParams: memory beyond 4 GiB, which plugged memory always is, has the
// kernel keep 64 MiB aside, and write to all of it, for devices that reach no
// further (pci_swiotlb_detect_4gb in arch/x86/kernel/pci-dma.c): there are none.
// And plugged memory carries its own page descriptors, a 64th of it. They would
// be taken from what the VM began with, and a guest to which 64 times as much is
// plugged at once would die of it.
var memoryParams = []string{"swiotlb=noforce", "memory_hotplug.memmap_on_memory=1"}

// waitParams: a kernel that can be preempted waits some ticks of its timer for a grace
// period of RCU, which mounts, namespaces and cgroups come to often, and a guest that makes
// a container has nothing else to do meanwhile. "rcu_expedited" asks the processors instead
// (kernel/rcu/tree_exp.h), and "favordynmods" has the lock of cgroups wait once and not each
// time that a process is moved (kernel/cgroup/cgroup.c; since Linux 6.7, older ones take
// it for a variable of init's).
var waitParams = []string{"rcupdate.rcu_expedited=1", "cgroup_favordynmods=true"}

// argv is QEMU's command line without the name of the program. It depends on
// nothing but its arguments.
func argv(s Spec, accel Accelerator, dev vsock.Wiring) []string {
	args := []string{
		"-name", "erofsvm,debug-threads=on",
		"-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none",
		"-sandbox", sandbox,
		"-machine", s.Machine + ",memory-backend=memory,dump-guest-core=off,usb=off,sata=off,smbus=off,vmport=off",
		"-accel", accelerate(accel),
		"-cpu", cpu(accel),
		"-smp", processors(s, accel),
		"-m", memorySize(s),
		"-object", memory(s, dev),
		"-rtc", "base=utc",
		"-kernel", s.Kernel,
		"-initrd", s.Initrd,
		"-append", strings.Join(slices.Concat(consoleParams, timerParams, memoryParams, waitParams, s.KernelParams), " "),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fdConsole),
		"-device", "isa-serial,chardev=console",
		"-object", "rng-builtin,id=rng",
		"-device", fmt.Sprintf("virtio-rng-pci,rng=rng,bus=pcie.0,addr=%02x,disable-legacy=on", addrRNG),
	}
	if reportsFree(s, dev) {
		args = append(args, "-device", fmt.Sprintf("virtio-balloon-pci,bus=pcie.0,addr=%02x,disable-legacy=on,free-page-reporting=on", addrMemory))
	}
	switch s.role() {
	case boots:
		args = append(args, vsockChardev(dev)...)
		args = append(args, vsockAtBoot(dev)...)
	case template:
		args = append(args, "-device", "vmgenid,guid="+s.generation)
	case resumes:
		args = append(args, vsockChardev(dev)...)
		args = append(args, "-device", "vmgenid,guid="+s.generation, "-incoming", "defer")
	}
	for i := range s.ioThreads() {
		args = append(args, "-object", "iothread,id="+ioThread(i))
	}
	args = append(args, slotDevices(s)...)
	if s.stopped {
		args = append(args, "-S")
	}
	if s.disguised {
		args = append(args, disguise...)
	}
	return args
}

// translatedMiB bounds what an emulator keeps of translated code. A start needs 90 MiB;
// with 64 it takes a fourth longer, with 16 twice as long. Left alone, QEMU takes up to 1 GiB
// (tcg/region.c, DEFAULT_CODE_GEN_BUFFER_SIZE), which no limit of the guest counts.
const translatedMiB = 128

func accelerate(a Accelerator) string {
	if a != AcceleratorTCG {
		return string(a)
	}
	return fmt.Sprintf("%s,tb-size=%d", a, translatedMiB)
}

// processors are those of one socket, since then the guest's scheduler knows
// that they share a cache; left alone, older machine types take a socket each.
//
// An emulated machine has room for two at least, of which the second one never comes: for one
// that can have a single processor QEMU leaves out the barrier that is in a locked instruction
// (accel/tcg/tcg-accel-ops-mttcg.c, mttcg_start_vcpu_thread; tcg/tcg-op-ldst.c,
// GEN_ATOMIC_HELPER), and the guest's drivers then lose requests to devices that
// other threads serve (docs/decisions/0029-an-emulated-machine-has-room-for-two-processors.md).
func processors(s Spec, accel Accelerator) string {
	most := max(s.MaxVCPUs, s.VCPUs)
	if accel == AcceleratorTCG {
		most = max(most, 2)
	}
	if most == s.VCPUs {
		return strconv.Itoa(s.VCPUs)
	}
	return fmt.Sprintf("%d,sockets=1,cores=%d,threads=1,maxcpus=%[2]d", s.VCPUs, most)
}

func memorySize(s Spec) string {
	if s.MaxMemoryMiB <= s.MemoryMiB {
		return fmt.Sprintf("%dM", s.MemoryMiB)
	}
	return fmt.Sprintf("size=%dM,slots=%d,maxmem=%dM", s.MemoryMiB, memorySlots, s.MaxMemoryMiB)
}

// cpu is the fullest model the accelerator has: images built for x86-64-v2 and
// later run on it, and VMs do not move between hosts.
func cpu(accel Accelerator) string {
	if accel == AcceleratorKVM {
		return "host"
	}
	// Five levels of page tables cost emulation time on every miss of the TLB. And
	// kernels, C libraries and Go copy by "rep movsb" where the processor says that
	// it is fast; an emulated one moves byte by byte (do_gen_rep in QEMU's
	// target/i386/tcg/translate.c), and the other ways of copying eight or more.
	return "max,la57=off,erms=off,fsrm=off"
}

// memory is the guest's. Only shared memory is a file that a vhost-user daemon can
// map. A template's is a file that all can map who go on from it, each for itself: with
// "rom=off", what is written to is a copy of the page (QEMU's docs of
// memory-backend-file). Who has to share it has a copy of that file. Only what has a
// name can be left out of a VM's state (migration/ram.c, migrate_ram_is_ignored), so a
// copy is no memory-backend-memfd, although it is in one. The file is one that QEMU
// inherits, since it takes no other descriptors here.
func memory(s Spec, dev vsock.Wiring) string {
	size := fmt.Sprintf("id=memory,size=%dM", s.MemoryMiB)
	file := fmt.Sprintf("memory-backend-file,%s,mem-path=/proc/self/fd/%d", size, fdMemory)
	switch {
	case s.role() == template, s.role() == resumes && sharedMemory(s, dev):
		return file + ",share=on"
	case sharedMemory(s, dev):
		return backendType(true) + "," + size + ",share=on"
	case s.role() == resumes:
		return file + ",share=off,readonly=on,rom=off"
	}
	return backendType(false) + "," + size
}

// sharedMemory says that a daemon needs the guest's memory, now or later.
func sharedMemory(s Spec, dev vsock.Wiring) bool { return dev.SharedMemory || s.Virtiofsd != "" }

// reportsFree says that the guest tells which memory it does not use, for the host to
// take back. Of memory that several VMs have mapped QEMU gives nothing back, since it
// would make a hole in the file (system/physmem.c, ram_block_discard_range).
func reportsFree(s Spec, dev vsock.Wiring) bool {
	return s.Reclaim && (s.role() == boots || sharedMemory(s, dev))
}

func backendType(shared bool) string {
	if shared {
		return "memory-backend-memfd"
	}
	return "memory-backend-ram"
}

// vsockChardev is QEMU's connection to a vsock daemon.
func vsockChardev(dev vsock.Wiring) []string {
	if dev.Kind == vsock.Kernel {
		return nil
	}
	return []string{"-chardev", fmt.Sprintf("socket,id=vsock,fd=%d", fdVsock)}
}

func vsockAtBoot(dev vsock.Wiring) []string {
	place := fmt.Sprintf("id=vsock,bus=pcie.0,addr=%02x,disable-legacy=on", addrVsock)
	if dev.Kind == vsock.Kernel {
		return []string{"-device", fmt.Sprintf("vhost-vsock-pci,%s,guest-cid=%d,vhostfd=%d", place, dev.CID, fdVsock)}
	}
	return []string{"-device", fmt.Sprintf("vhost-user-vsock-pci,%s,chardev=vsock", place)}
}

// vsockPlugged is the argument of device_add: the root bus takes no devices while
// the machine is there, so it goes behind a bridge, as disks do.
func vsockPlugged(dev vsock.Wiring, at slot) map[string]any {
	options := map[string]any{"id": "vsock", "bus": at.bus(), "addr": at.addr(), "disable-legacy": "on"}
	if dev.Kind == vsock.Kernel {
		// The number of a descriptor is no name in the monitor's list, as long as it
		// begins with a digit (monitor/fds.c, monitor_fd_param).
		options["driver"], options["guest-cid"], options["vhostfd"] = "vhost-vsock-pci", dev.CID, strconv.Itoa(fdVsock)
	} else {
		options["driver"], options["chardev"] = "vhost-user-vsock-pci", "vsock"
	}
	return options
}

// ioThreads is how many threads serve the disks beside QEMU's main one. SCSI disks
// have none: QEMU takes such a disk away while its thread may be at a request to it,
// and dies (docs/decisions/0018-scsi-disks-in-the-main-thread.md).
func (s Spec) ioThreads() int {
	if s.BlockDriver == VirtioSCSI {
		return 0
	}
	return s.IOThreads
}

// ioThread is the name of one of the threads that serve disks.
func ioThread(i int) string { return fmt.Sprintf("io%d", i) }

// slotDevices are the devices that disks, shares and network interfaces are plugged
// into.
func slotDevices(s Spec) []string {
	var args []string
	if s.BlockDriver == VirtioSCSI && s.DiskSlots > 0 {
		args = append(args, "-device", fmt.Sprintf("virtio-scsi-pci,id=%s,bus=pcie.0,addr=%02x,disable-legacy=on", scsiController, addrSCSI))
	}
	for i := range bridges(s.slotCount()) {
		// shpc=off: Debian's cloud kernel has no driver for it; ACPI plugs. The
		// firmware gives an empty bridge no addresses unless it asks, and a
		// disk would find none: it needs 4 KiB, and 16 KiB prefetchable.
		args = append(args, "-device", fmt.Sprintf("pci-bridge,id=%s,bus=pcie.0,addr=%02x,chassis_nr=%d,shpc=off,mem-reserve=1M,pref64-reserve=1M",
			bridgeID(i), addrBridge+i, i+1))
	}
	return args
}

// The SCSI controller, and the bus that QEMU gives it.
const (
	scsiController = "scsi"
	scsiBus        = scsiController + ".0"
)

// firstNICSlot is behind those of the disks and shares, if those need any.
func (s Spec) firstNICSlot() slot {
	if s.BlockDriver == VirtioSCSI {
		return slot(s.shareSlots())
	}
	return slot(s.DiskSlots)
}

// slotCount is how many slots there are behind bridges.
func (s Spec) slotCount() int {
	n := int(s.vsockSlot())
	if s.role() != boots {
		n++
	}
	return n
}

// vsockSlot is the last one, for a vsock device that is not there at boot.
func (s Spec) vsockSlot() slot { return s.firstNICSlot() + slot(s.NICSlots) }

// shareSlots is how many slots there are for shares alone: where disks need none.
func (s Spec) shareSlots() int {
	if s.BlockDriver == VirtioSCSI && s.Virtiofsd != "" {
		return shareSlots
	}
	return 0
}

// bridges is how many bridges hold n devices. A bridge costs the guest's boot 2 %
// under TCG whether its slots are used or not; a PCI Express root port per disk
// costs as much for each.
func bridges(n int) int { return (n + slotsPerBridge - 1) / slotsPerBridge }

func bridgeID(i int) string { return fmt.Sprintf("bridge%d", i) }
