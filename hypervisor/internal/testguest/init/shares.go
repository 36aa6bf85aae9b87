package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountShare mounts the virtiofs with a tag at its mountPoint, once it is there: the
// kernel announces each driver that has taken a device.
func mountShare(tag string) error {
	at := mountPoint(tag)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: quiet}); err != nil {
		return err
	}
	buf := make([]byte, 8<<10)
	for {
		err := unix.Mount(tag, at, "virtiofs", 0, "")
		if !errors.Is(err, unix.EINVAL) { // what an unknown tag gives
			return err
		}
		if _, err := unix.Read(fd, buf); err != nil && err != unix.ENOBUFS && err != unix.EINTR {
			return fmt.Errorf("wait for the tag %s: %w", tag, err)
		}
	}
}

// maxRead bounds an answer, in bytes.
const maxRead = 4096

func readFile(path string) (any, error) {
	data, err := os.ReadFile(path)
	if err == nil && len(data) > maxRead {
		err = fmt.Errorf("%s has %d bytes", path, len(data))
	}
	return map[string]string{"text": string(data)}, err
}

func writeFile(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }
