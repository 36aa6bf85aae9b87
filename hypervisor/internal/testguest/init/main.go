// Command init is PID 1 of the guest that the tests of this tree boot: it loads
// the modules it finds in /modules, listens on vsock port 1024, dials the host
// on port 1028 and answers one line of request with one line of JSON.
//
// It is no agent: it knows disks as /sys/block shows them, and the size of the
// machine, and does to them what a test asks for, one request at a time for each
// connection.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

const (
	portAgent = 1024
	portReady = 1028
)

func main() {
	if err := run(); err != nil {
		fmt.Println("testguest:", err)
		os.Exit(1) // PID 1 gone: the kernel panics
	}
}

func run() error {
	for _, m := range []struct{ source, target, fstype string }{
		{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"devtmpfs", "/dev", "devtmpfs"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	fmt.Println("testguest: up")
	switch {
	case strings.Contains(string(cmdline), "testguest=floor"):
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case strings.Contains(string(cmdline), "testguest=exit"):
		return fmt.Errorf("asked to exit")
	}
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, path := range modules {
		if err := load(path); err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	if strings.Contains(string(cmdline), "testguest=silent") {
		for {
			_ = unix.Pause()
		}
	}
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, portAgent, nil)
	if err != nil {
		return fmt.Errorf("listen on vsock port %d: %w", portAgent, err)
	}
	go func() {
		if err := announce(); err != nil {
			fmt.Println("testguest: announce:", err)
		}
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go serve(c)
	}
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

func serve(c net.Conn) {
	defer c.Close()
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		answer, err := handle(lines.Text())
		if err != nil {
			answer = map[string]string{"error": err.Error()}
		}
		if json.NewEncoder(c).Encode(answer) != nil {
			return
		}
	}
}

// requests are what can be asked for, by the verb that begins the line, with the
// number of arguments behind it.
var requests = map[string]struct {
	args int
	do   func(args []string) (any, error)
}{
	"echo":    {1, func(a []string) (any, error) { return map[string]string{"echo": a[0]}, nil }},
	"disks":   {1, func(a []string) (any, error) { return waitForDisks(a[0]) }},
	"sum":     {1, func(a []string) (any, error) { return sum(a[0]) }},
	"fill":    {2, func(a []string) (any, error) { return done, fill(a[0], a[1]) }},
	"remove":  {1, func(a []string) (any, error) { return done, os.Remove(a[0]) }},
	"discard": {1, func(a []string) (any, error) { return done, discard(a[0]) }},
	"mount":   {2, func(a []string) (any, error) { return done, mount(a[0], a[1]) }},
	"trim":    {1, func(a []string) (any, error) { return done, trim(a[0]) }},
	"unmount": {1, func(a []string) (any, error) { return done, unix.Unmount(mountPoint(a[0]), 0) }},
	"share":   {1, func(a []string) (any, error) { return done, mountShare(a[0]) }},
	"read":    {1, func(a []string) (any, error) { return readFile(a[0]) }},
	"write":   {2, func(a []string) (any, error) { return done, writeFile(a[0], a[1]) }},
	"frames":  {2, func(a []string) (any, error) { return exchange(a[0], a[1]) }},
	"size":    {0, func([]string) (any, error) { return machineSize() }},
	"online":  {1, func(a []string) (any, error) { return online(a[0]) }},
	"hold":    {1, func(a []string) (any, error) { return done, hold(a[0]) }},
	"panic":   {0, func([]string) (any, error) { return done, os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) }},
}

// done answers what has no more to say.
var done = struct{}{}

func handle(line string) (any, error) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil, fmt.Errorf("no request")
	}
	r, known := requests[words[0]]
	if !known || len(words) != r.args+1 {
		return nil, fmt.Errorf("no such request: %q", line)
	}
	return r.do(words[1:])
}
