package annotations

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/runtime/sizing"
)

// row is an annotation, and the key of the configuration that it sets.
type row struct {
	name, key string
	set       func(*state, string) error
}

// state is a configuration on its way.
type state struct {
	config configs.Config
	most   sizing.Size
}

// apply sets what a row says, and checks the whole, which was valid before.
func (s *state) apply(r row, value string) error {
	if err := r.set(s, value); err != nil {
		return fmt.Errorf("%s: %w", r.key, err)
	}
	return s.config.Validate()
}

// table is in the order in which annotations are applied: what a VM begins with
// comes before what it may become, which is at least that. Kata's names are those
// of src/runtime/virtcontainers/pkg/annotations and, of default_maxmemory, of its
// Rust runtime.
var table = []row{
	{own + "hypervisor.vcpus", "hypervisor.vcpus", setVCPUs},
	{kata + ".hypervisor.default_vcpus", "hypervisor.vcpus", setVCPUs},
	{own + "hypervisor.memory_mib", "hypervisor.memory_mib", setMemory},
	{kata + ".hypervisor.default_memory", "hypervisor.memory_mib", setMemory},
	{own + "hypervisor.max_vcpus", "hypervisor.max_vcpus", setMaxVCPUs},
	{kata + ".hypervisor.default_max_vcpus", "hypervisor.max_vcpus", setMaxVCPUs},
	{own + "hypervisor.max_memory_mib", "hypervisor.max_memory_mib", setMaxMemory},
	{kata + ".hypervisor.default_maxmemory", "hypervisor.max_memory_mib", setMaxMemory},
	{own + "hypervisor.accelerator", "hypervisor.accelerator", setAccelerator},
	{own + "hypervisor.machine", "hypervisor.machine", setMachine},
	{kata + ".hypervisor.machine_type", "hypervisor.machine", setMachine},
	{own + "hypervisor.slots", "hypervisor.slots", setSlots},
	{own + "hypervisor.block_driver", "hypervisor.block_driver", setBlockDriver},
	{kata + ".hypervisor.block_device_driver", "hypervisor.block_driver", setBlockDriver},
	{own + "hypervisor.aio", "hypervisor.aio", setAIO},
	{kata + ".hypervisor.block_device_aio", "hypervisor.aio", setAIO},
	{own + "guest.kernel_params", "guest.kernel_params", addKernelParams},
	{kata + ".hypervisor.kernel_params", "guest.kernel_params", addKernelParams},
	{own + "network.model", "network.model", setNetworkModel},
	{kata + ".runtime.internetworking_model", "network.model", setKataNetworkModel},
	{kata + ".hypervisor.disable_vhost_net", "network.vhost_net", disableVhostNet},
	{own + "rootfs.layers", "rootfs.layers", setLayers},
	{own + "rootfs.memory_upper_mib", "rootfs.memory_upper_mib", setMemoryUpper},
}

const ofTheHost = "names a file of the host, which is not for a pod to say: remove it, and use a RuntimeClass whose configuration names the file"

// refused are annotations that are not honoured whatever is allowed, and that
// deserve a reason.
var refused = map[string]string{
	kata + "_path":                       ofTheHost,
	kata + ".hypervisor.path":            ofTheHost,
	kata + ".hypervisor.kernel":          ofTheHost,
	kata + ".hypervisor.image":           ofTheHost,
	kata + ".hypervisor.initrd":          ofTheHost,
	kata + ".hypervisor.firmware":        ofTheHost,
	kata + ".hypervisor.firmware_volume": ofTheHost,
	own + "hypervisor.path":              ofTheHost,
	own + "guest.kernel":                 ofTheHost,
	own + "guest.initrd":                 ofTheHost,
}

// setVCPUs also takes a fraction, as Kata does, and rounds it up.
func setVCPUs(s *state, value string) (err error) {
	whole, fraction, hasFraction := strings.Cut(value, ".")
	more := 0
	if hasFraction {
		if fraction == "" || strings.Trim(fraction, "0123456789") != "" {
			return fmt.Errorf("want a number between 1 and %d", s.most.VCPUs)
		}
		if strings.Trim(fraction, "0") != "" {
			more = 1
		}
	}
	n, err := strconv.ParseUint(whole, 10, 31)
	if err != nil {
		return fmt.Errorf("want a number between 1 and %d", s.most.VCPUs)
	}
	s.config.Hypervisor.VCPUs, err = between(int(n)+more, 1, s.most.VCPUs)
	return err
}

func setMemory(s *state, value string) (err error) {
	s.config.Hypervisor.MemoryMiB, err = number(value, configs.MinMemoryMiB, s.most.MemoryMiB)
	return err
}

func setMaxVCPUs(s *state, value string) (err error) {
	s.config.Hypervisor.MaxVCPUs, err = number(value, s.config.Hypervisor.VCPUs, s.most.VCPUs)
	return err
}

func setMaxMemory(s *state, value string) (err error) {
	s.config.Hypervisor.MaxMemoryMiB, err = number(value, s.config.Hypervisor.MemoryMiB, s.most.MemoryMiB)
	return err
}

// These have their values checked with the whole configuration.

func setAccelerator(s *state, value string) error {
	s.config.Hypervisor.Accelerator = value
	return nil
}

func setMachine(s *state, value string) error {
	s.config.Hypervisor.Machine = value
	return nil
}

func setBlockDriver(s *state, value string) error {
	s.config.Hypervisor.BlockDriver = value
	return nil
}

func setAIO(s *state, value string) error {
	s.config.Hypervisor.AIO = value
	return nil
}

func setNetworkModel(s *state, value string) error {
	s.config.Network.Model = value
	return nil
}

func setLayers(s *state, value string) error {
	s.config.Rootfs.Layers = value
	return nil
}

// setKataNetworkModel: what Kata calls tcfilter is called tap here.
func setKataNetworkModel(s *state, value string) error {
	switch value {
	case "tcfilter":
		value = "tap"
	case "macvtap", "none":
	default:
		return errors.New("want tcfilter, macvtap or none")
	}
	return setNetworkModel(s, value)
}

// disableVhostNet can keep the host's kernel out of a pod's network, and not bring
// it in.
func disableVhostNet(s *state, value string) error {
	disable, err := strconv.ParseBool(value)
	if err != nil {
		return errors.New("want true or false")
	}
	s.config.Network.VhostNet = s.config.Network.VhostNet && !disable
	return nil
}

// setSlots: an empty slot costs the guest, and the host next to nothing.
func setSlots(s *state, value string) (err error) {
	s.config.Hypervisor.Slots, err = number(value, 2, configs.MaxSlots)
	return err
}

// setMemoryUpper: it is memory of the guest.
func setMemoryUpper(s *state, value string) (err error) {
	s.config.Rootfs.MemoryUpperMiB, err = number(value, 0, s.most.MemoryMiB)
	return err
}

// maxKernelParams leaves room for the parameters that the runtime itself gives:
// a kernel cuts off what is more than 2048 bytes (COMMAND_LINE_SIZE in
// arch/x86/include/asm/setup.h).
const maxKernelParams = 1024

// addKernelParams adds to what the configuration has. The kernel is the guest's
// own, and it takes the last of two values.
func addKernelParams(s *state, value string) error {
	for _, r := range value {
		if r < ' ' || r > '~' {
			return errors.New("want printable ASCII")
		}
	}
	all := strings.TrimSpace(s.config.Guest.KernelParams + " " + value)
	if len(all) > maxKernelParams {
		return fmt.Errorf("with those of the configuration it is longer than %d bytes", maxKernelParams)
	}
	s.config.Guest.KernelParams = all
	return nil
}

// number reads plain decimal digits.
func number(value string, low, high int) (int, error) {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("want a whole number between %d and %d", low, high)
	}
	return between(int(n), low, high)
}

func between(n, low, high int) (int, error) {
	if n < low || n > high {
		return 0, fmt.Errorf("%d is not between %d and %d", n, low, high)
	}
	return n, nil
}
