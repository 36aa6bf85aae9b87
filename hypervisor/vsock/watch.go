package vsock

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch waits for one name to appear in a directory (inotify(7)).
type watch struct {
	file *os.File
	name string
}

// watchFor watches dir for name, which does not exist there yet.
func watchFor(dir, name string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		f.Close()
		return nil, fmt.Errorf("inotify_add_watch %s: %w", dir, err)
	}
	return &watch{file: f, name: name}, nil
}

// Wait returns when the name has appeared, or with an error when ctx ends or gone
// is closed.
func (w *watch) Wait(ctx context.Context, gone <-chan struct{}) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-gone:
			cancel(errors.New("the daemon has ended"))
		case <-ctx.Done():
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	buf := make([]byte, 4<<10) // at least one event: 16 bytes and NAME_MAX+1
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
		if names(buf[:n], w.name) {
			return nil
		}
	}
}

func (w *watch) Close() error { return w.file.Close() }

// names says whether one of the events (struct inotify_event) is about name.
func names(events []byte, name string) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		length := binary.NativeEndian.Uint32(events[12:16])
		events = events[unix.SizeofInotifyEvent:]
		if uint64(length) > uint64(len(events)) {
			return false
		}
		if string(bytes.TrimRight(events[:length], "\x00")) == name {
			return true
		}
		events = events[length:]
	}
	return false
}
