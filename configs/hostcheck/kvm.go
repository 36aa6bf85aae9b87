package hostcheck

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/configs/hostroot"
)

// Of linux/kvm.h: _IO(KVMIO, 0x00), _IO(KVMIO, 0x01), KVM_API_VERSION.
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmAPIVersion    = 12
)

// makeVM makes a VM without memory or processors, and lets it go: the device is
// there on hosts whose processor has no virtualisation left to give.
func makeVM(root hostroot.Root) error {
	name, err := root.Real(kvmDevice)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if v, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion); err != nil || v != kvmAPIVersion {
		return fmt.Errorf("%s: version %d of its interface, %d is wanted (%v)", kvmDevice, v, kvmAPIVersion, err)
	}
	vm, err := unix.IoctlRetInt(int(f.Fd()), kvmCreateVM)
	if err != nil {
		return fmt.Errorf("%s: make a VM: %w", kvmDevice, err)
	}
	return unix.Close(vm)
}
