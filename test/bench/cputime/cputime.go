// Package cputime says for how long processes have had a processor: of a virtual
// machine that is emulated, the guest's work and the emulator's, which hardly
// depends on what else the machine does.
//
// It only looks; its function may be called from any goroutine.
package cputime

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Of is the time of all threads of a process, those that have ended included. Its
// clock is clock_getcpuclockid(3): CPUCLOCK_SCHED of the kernel's
// include/linux/posix-timers.h.
func Of(pid int) (time.Duration, error) {
	const sched = 2
	if pid <= 0 { // 0 is the caller
		return 0, errors.New("processor time: there is no process")
	}
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}
