package boot

import (
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// spare is what Tidy leaves free, in bytes: the kernel takes some of it for the page
// tables of the rest, and nobody may be killed for want of memory.
const spare = 24 << 20

// Tidy makes a guest small that is to be saved: what it does not use is full of what it
// once used, such as the archive that it was unpacked from, and would be saved as
// well. Memory that the kernel hands out is zeroed, and stays so when it is given
// back. On the host the guest then has all of its memory, for a moment.
func Tidy() error {
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("drop caches: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return os.NewSyscallError("sysinfo", err)
	}
	free := int64(info.Freeram)*int64(info.Unit) - spare
	if free <= 0 {
		return nil
	}
	mem, err := unix.Mmap(-1, 0, int(free), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("take free memory: %w", err)
	}
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("give free memory back: %w", err)
	}
	return nil
}
