package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// size is how large the kernel says that the machine is.
type size struct {
	Processors int `json:"processors"` // that are online
	KiB        int `json:"kib"`        // of memory that can be used
}

func machineSize() (size, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return size{}, err
	}
	var s size
	if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &s.KiB); err != nil {
		return size{}, fmt.Errorf("/proc/meminfo: %w", err)
	}
	text, err = os.ReadFile("/proc/stat")
	if err != nil {
		return size{}, err
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "cpu") && !strings.HasPrefix(line, "cpu ") {
			s.Processors++
		}
	}
	return s, nil
}

// online brings processors online until there are as many as count says.
func online(count string) (size, error) {
	want, err := strconv.Atoi(count)
	if err != nil {
		return size{}, err
	}
	for deadline := time.Now().Add(quiet * time.Second); ; time.Sleep(10 * time.Millisecond) {
		files, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/online")
		if err != nil {
			return size{}, err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(text)) == "0" {
				err = os.WriteFile(file, []byte("1"), 0)
			}
			if err != nil {
				return size{}, err
			}
		}
		s, err := machineSize()
		if err != nil || s.Processors >= want || time.Now().After(deadline) {
			return s, err
		}
	}
}

// hold takes memory, in MiB, until the machine ends.
func hold(mib string) error {
	n, err := strconv.Atoi(mib)
	if err != nil {
		return err
	}
	_, err = unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	return err
}
