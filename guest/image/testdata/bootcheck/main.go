// Command bootcheck is a first process for the test of the guest image: it
// loads what layout.ModuleList names, says how that went, and powers off.
package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/layout"
)

func main() {
	fmt.Printf("BOOTCHECK init after %s\n", uptime())
	if err := load(); err != nil {
		fmt.Println("BOOTCHECK failed:", err)
	} else {
		fmt.Printf("BOOTCHECK done after %s\n", uptime())
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func load() error {
	list, err := os.Open(layout.ModuleList)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		stage, file, _ := strings.Cut(lines.Text(), " ")
		started := time.Now()
		if err := insert(filepath.Join(layout.ModuleDir, file)); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		fmt.Printf("BOOTCHECK %s %s %d us\n", stage, file, time.Since(started).Microseconds())
	}
	return lines.Err()
}

func insert(path string) error {
	module, err := os.Open(path)
	if err != nil {
		return err
	}
	defer module.Close()
	return unix.FinitModule(int(module.Fd()), "", 0)
}

func uptime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return time.Duration(now.Nano()).Round(time.Millisecond)
}
