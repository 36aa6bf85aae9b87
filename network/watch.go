package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// settle is how long nothing must have changed before a change is told: a
	// plugin adds an interface, its addresses and its routes one by one.
	settle = 100 * time.Millisecond
	// unsettled is after how long it is told all the same.
	unsettled = 2 * time.Second
)

// groups are those of rtnetlink(7) that tell of what Scan reads, as bits.
const groups = unix.RTMGRP_LINK | unix.RTMGRP_NEIGH |
	unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_ROUTE

// Changes tells when a namespace has changed since Watch. It is for one
// goroutine; Close may come from any.
type Changes struct {
	socket *os.File
	buf    []byte
}

// Watch begins to listen; the caller closes what it returns.
func (n *Namespace) Watch() (*Changes, error) {
	fd := -1
	err := n.Inside(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
		}
		return err
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("listen for changes in %s: %w", n.file.Name(), err)
	}
	return &Changes{socket: os.NewFile(uintptr(fd), "rtnetlink"), buf: make([]byte, 32<<10)}, nil
}

// Close ends a Next that waits, with os.ErrClosed.
func (c *Changes) Close() error { return c.socket.Close() }

// Next waits until something has changed and things have settled, or ctx ends;
// after that there is no further Next. What changed is for Scan to find out: a
// message that was lost or misunderstood does no harm.
func (c *Changes) Next(ctx context.Context) error {
	// A deadline in the past is how a blocked read is woken when ctx ends.
	stop := context.AfterFunc(ctx, func() { _ = c.socket.SetReadDeadline(time.Unix(1, 0)) })
	err := c.read()
	if !stop() {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("listen for changes: %w", err)
	}
	defer func() { _ = c.socket.SetReadDeadline(time.Time{}) }()
	for end := time.Now().Add(unsettled); time.Now().Before(end) && ctx.Err() == nil; {
		if err := c.socket.SetReadDeadline(time.Now().Add(settle)); err != nil {
			return fmt.Errorf("listen for changes: %w", err)
		}
		err := c.read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return fmt.Errorf("listen for changes: %w", err)
		}
	}
	return context.Cause(ctx)
}

// read takes one message. That the kernel lost some is as good as one.
func (c *Changes) read() error {
	_, err := c.socket.Read(c.buf)
	if errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}
