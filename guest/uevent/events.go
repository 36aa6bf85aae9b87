package uevent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// kobjectGroup is the multicast group to which the kernel itself sends
// (lib/kobject_uevent.c); group 2 is what udev sends on.
const kobjectGroup = 1

// Event is one event of the kernel.
type Event struct {
	// Lost says that the kernel dropped events before this one, which is empty
	// then.
	Lost bool

	fields [][]byte // "KEY=value"
}

// Get returns the value of a key, "" if the event has none of that name.
func (e Event) Get(key string) string {
	for _, field := range e.fields {
		if name, value, ok := bytes.Cut(field, []byte("=")); ok && string(name) == key {
			return string(value)
		}
	}
	return ""
}

// Parse reads the text of an event: "action@devpath", then "KEY=value" as often as there is
// one, each ended by a zero byte (lib/kobject_uevent.c).
func Parse(data []byte) Event {
	_, rest, _ := bytes.Cut(data, []byte{0})
	return Event{fields: bytes.Split(rest, []byte{0})}
}

// Events is a socket that receives the kernel's events from its Listen on. One
// goroutine at a time may read; Close may come from any.
type Events struct {
	socket *os.File
	buf    []byte
}

// Listen opens a socket; the caller closes it.
func Listen() (*Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("socket(NETLINK_KOBJECT_UEVENT)", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kobjectGroup}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind(NETLINK_KOBJECT_UEVENT)", err)
	}
	return &Events{
		socket: os.NewFile(uintptr(fd), "uevent"),
		buf:    make([]byte, 8<<10), // UEVENT_BUFFER_SIZE is 2 KiB, include/linux/kobject.h
	}, nil
}

// Close ends a Next that waits, with os.ErrClosed.
func (e *Events) Close() error { return e.socket.Close() }

// Next returns the next event, which holds until the call after it. It waits
// until ctx ends, and then returns the error of ctx; after that there are no
// more. What an event says is only a reason to look: whoever may send to the
// group could have made it up.
func (e *Events) Next(ctx context.Context) (Event, error) {
	// A deadline in the past is how a blocked read is woken when ctx ends.
	stop := context.AfterFunc(ctx, func() { _ = e.socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := e.socket.Read(e.buf)
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return Event{Lost: true}, nil
	case err != nil && ctx.Err() != nil:
		return Event{}, ctx.Err()
	case err != nil:
		return Event{}, fmt.Errorf("read an event: %w", err)
	}
	return Parse(e.buf[:n]), nil
}
