package main

import (
	"bytes"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// etherType of the frames is the first of those that IEEE 802 leaves for experiments.
	etherType = 0x88b5

	frameTimeout = 2 * time.Minute
	frameEvery   = 200 * time.Millisecond
)

// exchange sends frames with a text from the network interface with this MAC until one
// comes back whose text is another one, which it returns with the queues that the
// interface has.
func exchange(mac, text string) (any, error) {
	link, err := awaitLink(mac)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(bigEndian(etherType)))
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := setUp(fd, link.Name); err != nil {
		return nil, fmt.Errorf("set %s up: %w", link.Name, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(etherType), Ifindex: link.Index}); err != nil {
		return nil, err
	}
	wait := unix.NsecToTimeval(int64(frameEvery))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return nil, err
	}
	frame := append(bytes.Repeat([]byte{0xff}, 6), link.HardwareAddr...)
	frame = append(frame, etherType>>8, etherType&0xff)
	frame = append(frame, fmt.Sprintf("%-46s", text)...)
	buf := make([]byte, 256)
	for deadline := time.Now().Add(frameTimeout); time.Now().Before(deadline); {
		if _, err := unix.Write(fd, frame); err != nil {
			return nil, fmt.Errorf("send: %w", err)
		}
		n, err := unix.Read(fd, buf)
		if err != nil || n < 14 {
			continue // nothing yet
		}
		if said := string(bytes.TrimRight(buf[14:n], " \x00")); said != text {
			queues, err := filepath.Glob("/sys/class/net/" + link.Name + "/queues/rx-*")
			return map[string]any{"said": said, "queues": len(queues)}, err
		}
	}
	return nil, fmt.Errorf("nothing comes back within %v", frameTimeout)
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }

func awaitLink(mac string) (net.Interface, error) {
	for deadline := time.Now().Add(frameTimeout); time.Now().Before(deadline); time.Sleep(frameEvery) {
		links, err := net.Interfaces()
		if err != nil {
			return net.Interface{}, err
		}
		for _, l := range links {
			if l.HardwareAddr.String() == mac {
				return l, nil
			}
		}
	}
	return net.Interface{}, fmt.Errorf("no interface has the address %s", mac)
}

func setUp(fd int, name string) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
