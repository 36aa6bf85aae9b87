package network

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// makeMacVTap makes a macvtap on the interface. In passthru mode it has the
// interface's own MAC, and gets whatever arrives there.
func (n *Namespace) makeMacVTap(d *Device, queues int) error {
	name := deviceName(d.Interface)
	attrs := netlink.NewLinkAttrs() // with the kernel's length of queues, and not 0
	attrs.Name, attrs.ParentIndex, attrs.MTU = name, d.Index, d.MTU
	err := n.route.LinkAdd(&netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_PASSTHRU}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("make a macvtap: the kernel has none (CONFIG_MACVTAP), use network.model = %q: %w", Tap, err)
	}
	if err != nil {
		return fmt.Errorf("make a macvtap, where network.model = %q could do: %w", Tap, err)
	}
	link, err := n.route.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the macvtap: %w", err)
	}
	err = n.Inside(func() error {
		if err := silence(name); err != nil {
			return err
		}
		d.Queues, err = openMacVTap(name, link.Attrs().Index, queues)
		return err
	})
	if err != nil {
		return fmt.Errorf("open the macvtap: %w", err)
	}
	if err := n.route.LinkSetUp(link); err != nil {
		return fmt.Errorf("set the macvtap up: %w", err)
	}
	return nil
}

// openMacVTap opens the character device of a macvtap. The name of its node is
// made of an index that other namespaces give, too, so /dev may have another
// one's (drivers/net/macvtap.c). Its number stands in the sysfs of the namespace, and a node for
// it is made where nobody else can see it: in file systems that are never
// mounted anywhere. The caller is on a thread of the namespace.
func openMacVTap(name string, index, queues int) (files []*os.File, err error) {
	sysfs, err := detached("sysfs")
	if err != nil {
		return nil, err
	}
	defer unix.Close(sysfs)
	nodes, err := detached("tmpfs")
	if err != nil {
		return nil, err
	}
	defer unix.Close(nodes)

	tap := fmt.Sprintf("tap%d", index)
	text, err := readAt(sysfs, path.Join("class/net", name, tap, "dev"))
	if err != nil {
		return nil, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(strings.TrimSpace(text), "%d:%d", &major, &minor); err != nil {
		return nil, fmt.Errorf("number of %s: %w", tap, err)
	}
	if err := unix.Mknodat(nodes, tap, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return nil, os.NewSyscallError("mknod", err)
	}
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	for range queues {
		f, err := openQueue(nodes, tap, queues > 1)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

func openQueue(dir int, name string, several bool) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	request, err := unix.NewIfreq("")
	if err == nil {
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if several {
			flags |= unix.IFF_MULTI_QUEUE
		}
		request.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: TUNSETIFF: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// detached makes a file system that is mounted nowhere and goes with the
// descriptor. A sysfs is that of the calling thread's network namespace.
func detached(kind string) (int, error) {
	context, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", kind, err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, fmt.Errorf("fsconfig %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", kind, err)
	}
	return fd, nil
}

func readAt(dir int, name string) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var buf [64]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return "", &os.PathError{Op: "read", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}
