// Command init is PID 1 of the guest that the tests of this tree boot: it loads
// the modules it finds in /modules, listens on vsock port 1024, dials the host
// on port 1028 and answers one line of request with one line of JSON.
//
// It is no agent: it knows disks only as /sys/block shows them.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
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
	// Over the kernel's vsock nobody listens there: that is no error.
	if c, err := vsock.Dial(unix.VMADDR_CID_HOST, portReady, nil); err == nil {
		c.Close()
	}
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

func handle(line string) (any, error) {
	verb, arg, _ := strings.Cut(line, " ")
	switch verb {
	case "echo":
		return map[string]string{"echo": arg}, nil
	case "disks":
		return waitForDisks(arg)
	case "sum":
		return sum(arg)
	case "write":
		return map[string]string{}, os.WriteFile("/dev/"+arg, []byte("written by the guest"), 0)
	case "panic":
		return nil, os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	}
	return nil, fmt.Errorf("no such verb: %q", verb)
}

type disk struct {
	Name     string `json:"name"`
	Serial   string `json:"serial"`
	PCIPath  string `json:"pci_path"`
	Bytes    int64  `json:"bytes"`
	ReadOnly bool   `json:"read_only"`
}

// waitForDisks returns the disks once there are as many as count says. What comes
// is announced by the kernel (lib/kobject_uevent.c).
func waitForDisks(count string) ([]disk, error) {
	want, err := strconv.Atoi(count)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, err
	}
	buf := make([]byte, 8<<10)
	for {
		found, err := disks()
		if err != nil || len(found) == want {
			return found, err
		}
		if _, err := unix.Read(fd, buf); err != nil && err != unix.ENOBUFS {
			return nil, err
		}
	}
}

func disks() ([]disk, error) {
	found := []disk{}
	blocks, err := filepath.Glob("/sys/block/vd*")
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		d := disk{Name: filepath.Base(b)}
		serial, err := os.ReadFile(b + "/serial")
		if os.IsNotExist(err) {
			continue // on its way in or out
		}
		if err != nil {
			return nil, err
		}
		d.Serial = strings.TrimSpace(string(serial))
		ro, err := os.ReadFile(b + "/ro")
		if err != nil {
			return nil, err
		}
		d.ReadOnly = strings.TrimSpace(string(ro)) == "1"
		size, err := os.ReadFile(b + "/size")
		if err != nil {
			return nil, err
		}
		var sectors int64
		if _, err := fmt.Sscan(string(size), &sectors); err != nil {
			return nil, err
		}
		d.Bytes = sectors * 512
		real, err := filepath.EvalSymlinks(b)
		if err != nil {
			return nil, err
		}
		d.PCIPath = pciPath(real)
		found = append(found, d)
	}
	return found, nil
}

// pciPath turns …/pci0000:00/0000:00:02.0/0000:01:05.0/virtio3/block/vda into 02/05.
func pciPath(path string) string {
	var slots []string
	for element := range strings.SplitSeq(path, "/") {
		var domain, bus, slot, function int
		if n, _ := fmt.Sscanf(element, "%x:%x:%x.%x", &domain, &bus, &slot, &function); n == 4 {
			slots = append(slots, fmt.Sprintf("%02x", slot))
		}
	}
	return strings.Join(slots, "/")
}

func sum(name string) (any, error) {
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return nil, err
	}
	return map[string]any{"sha256": hex.EncodeToString(h.Sum(nil)), "bytes": n}, nil
}
