package main

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// announce tells the host that the guest listens. Over the kernel's vsock nobody
// listens there: that is no error. Without a device the guest is to be saved: it says
// so on its console, and dials once it has one.
func announce() error {
	events, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return err
	}
	defer unix.Close(events)
	if err := unix.Bind(events, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return err
	}
	if dialHost() {
		return nil
	}
	fmt.Println("erofsvm-agent: this guest can be a template")
	for event := make([]byte, 8<<10); ; {
		n, err := unix.Read(events, event)
		if err != nil && err != unix.ENOBUFS {
			return err
		}
		if bytes.HasPrefix(event[:max(n, 0)], []byte("bind@")) && dialHost() {
			return nil
		}
	}
}

// dialHost reports whether there is a device.
func dialHost() bool {
	c, err := vsock.Dial(unix.VMADDR_CID_HOST, portReady, nil)
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, unix.ENODEV)
}
