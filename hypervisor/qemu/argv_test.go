package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestArgv(t *testing.T) {
	spec := Spec{
		Dir: "/run/erofsvm/vm", Binary: "/usr/bin/qemu-system-x86_64",
		VCPUs: 2, MemoryMiB: 512, Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd",
		KernelParams: []string{"agent.log=debug", "a,b"}, DiskSlots: 32, Reclaim: true,
	}.withDefaults()
	few := spec
	few.DiskSlots, few.KernelParams, few.Machine, few.Reclaim = 0, nil, "pc-q35-7.2", false
	scsi := spec
	scsi.BlockDriver = VirtioSCSI
	threads, scsiThreads := spec, scsi
	threads.IOThreads, scsiThreads.IOThreads = 2, 2
	nics, scsiNICs := spec, scsi
	nics.DiskSlots, nics.NICSlots, scsiNICs.NICSlots = 31, 8, 8
	growing := spec
	growing.MaxVCPUs, growing.MaxMemoryMiB = 4, 2048
	saving, resuming, late := nics, nics, scsiNICs
	saving.saving, saving.generation = true, noGeneration
	resuming.From.State, resuming.generation = os.Stdin, "0a1b2c3d-4e5f-4a6b-8c7d-8e9fa0b1c2d3"
	late.From.State, late.generation = os.Stdin, resuming.generation
	for name, tc := range map[string]struct {
		spec  Spec
		accel Accelerator
		dev   vsock.Wiring
	}{
		"kvm-kernel-vsock":   {spec, AcceleratorKVM, vsock.Wiring{Kind: vsock.Kernel, CID: 4711}},
		"tcg-vhost-user":     {spec, AcceleratorTCG, vsock.Wiring{Kind: vsock.VhostUser, CID: 3, SharedMemory: true}},
		"tcg-virtio-scsi":    {scsi, AcceleratorTCG, vsock.Wiring{Kind: vsock.VhostUser, CID: 3, SharedMemory: true}},
		"tcg-iothreads":      {threads, AcceleratorTCG, vsock.Wiring{Kind: vsock.VhostUser, CID: 3, SharedMemory: true}},
		"tcg-scsi-iothreads": {scsiThreads, AcceleratorTCG, vsock.Wiring{Kind: vsock.VhostUser, CID: 3, SharedMemory: true}},
		"tcg-nics":           {nics, AcceleratorTCG, vsock.Wiring{Kind: vsock.VhostUser, CID: 3, SharedMemory: true}},
		"tcg-scsi-nics":      {scsiNICs, AcceleratorTCG, vsock.Wiring{Kind: vsock.VhostUser, CID: 3, SharedMemory: true}},
		"kvm-growing":        {growing, AcceleratorKVM, vsock.Wiring{Kind: vsock.VhostUser, CID: 3, SharedMemory: true}},
		"tcg-saving":         {saving, AcceleratorTCG, wiringOf(vsock.VhostUser)},
		"tcg-resuming":       {resuming, AcceleratorTCG, vsock.Wiring{Kind: vsock.VhostUser, CID: 3, SharedMemory: true}},
		"kvm-saving":         {saving, AcceleratorKVM, wiringOf(vsock.Kernel)},
		"kvm-scsi-resuming":  {late, AcceleratorKVM, vsock.Wiring{Kind: vsock.Kernel, CID: 4711}},
		"no-slots-old-model": {few, AcceleratorTCG, vsock.Wiring{Kind: vsock.Kernel, CID: 5}},
	} {
		t.Run(name, func(t *testing.T) {
			args := argv(tc.spec, tc.accel, tc.dev)
			if again := argv(tc.spec, tc.accel, tc.dev); !slices.Equal(args, again) {
				t.Error("a second call gives something else")
			}
			golden(t, name+".args", lines(args))
		})
	}
}

// lines puts every option on a line of its own.
func lines(args []string) string {
	var out strings.Builder
	for i, a := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(a, "-"):
			out.WriteByte('\n')
		default:
			out.WriteByte(' ')
		}
		out.WriteString(a)
	}
	return out.String() + "\n"
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; look at it, then run the test with -update:\n%s", path, got)
	}
}

// Over vhost-user with private memory QEMU says nothing and vsock never works.
func TestVhostUserHasSharedMemory(t *testing.T) {
	spec := Spec{MemoryMiB: 256}
	shared := func(dev vsock.Wiring) bool {
		return slices.ContainsFunc(argv(spec, AcceleratorTCG, dev), func(a string) bool {
			return strings.HasPrefix(a, "memory-backend-memfd,") && strings.HasSuffix(a, ",share=on")
		})
	}
	if !shared(vsock.Wiring{Kind: vsock.VhostUser, SharedMemory: true}) {
		t.Error("memory of a VM with vhost-user is private")
	}
	if shared(vsock.Wiring{Kind: vsock.Kernel, CID: 3}) {
		t.Error("memory is shared without need")
	}
}

// What is saved and what goes on from it are one machine, but for the generation, what
// the second one needs to be plugged into it, and how it has a file for its memory.
func TestVMGoesOnInTheMachineThatWasSaved(t *testing.T) {
	spec := Spec{MemoryMiB: 256, DiskSlots: 31}.withDefaults()
	saving, resuming := spec, spec
	saving.saving, saving.generation = true, noGeneration
	resuming.From.State, resuming.generation = os.Stdin, newGeneration()
	for _, kind := range []vsock.Kind{vsock.Kernel, vsock.VhostUser} {
		was := argv(saving, AcceleratorTCG, wiringOf(kind))
		var is []string
		for _, a := range argv(resuming, AcceleratorTCG, wiringOf(kind)) {
			switch {
			case a == "-incoming", a == "defer":
			case strings.HasPrefix(a, "socket,id=vsock,"):
				is = is[:len(is)-1] // with its -chardev
			default:
				a = strings.ReplaceAll(a, resuming.generation, noGeneration)
				is = append(is, strings.ReplaceAll(a, ",share=off,readonly=on,rom=off", ",share=on"))
			}
		}
		if !slices.Equal(was, is) {
			t.Errorf("%s: saved\n%s\nand gone on with\n%s", kind, lines(was), lines(is))
		}
	}
}

// What differs between two VMs of one configuration is in the descriptors they
// inherit and in the CID, never on the guest's command line.
func TestNothingOfOneVMReachesTheGuestsCommandLine(t *testing.T) {
	a, b := Spec{Dir: "/run/a", MemoryMiB: 256}, Spec{Dir: "/run/b", MemoryMiB: 256}
	dev := vsock.Wiring{Kind: vsock.VhostUser, CID: 3, SharedMemory: true}
	if !slices.Equal(argv(a, AcceleratorTCG, dev), argv(b, AcceleratorTCG, dev)) {
		t.Error("two VMs of one configuration have different command lines")
	}
}

// Without room for a second one QEMU leaves the barriers out of a guest's locked
// instructions (decision 29).
func TestAnEmulatedMachineHasRoomForTwoProcessors(t *testing.T) {
	for _, c := range []struct {
		vcpus, most int
		accel       Accelerator
		want        string
	}{
		{1, 0, AcceleratorTCG, "1,sockets=1,cores=2,threads=1,maxcpus=2"},
		{1, 1, AcceleratorTCG, "1,sockets=1,cores=2,threads=1,maxcpus=2"},
		{2, 0, AcceleratorTCG, "2"},
		{1, 4, AcceleratorTCG, "1,sockets=1,cores=4,threads=1,maxcpus=4"},
		{1, 0, AcceleratorKVM, "1"},
		{1, 4, AcceleratorKVM, "1,sockets=1,cores=4,threads=1,maxcpus=4"},
	} {
		if got := processors(Spec{VCPUs: c.vcpus, MaxVCPUs: c.most}, c.accel); got != c.want {
			t.Errorf("%d of %d with %s: -smp %s, want %s", c.vcpus, c.most, c.accel, got, c.want)
		}
	}
}
