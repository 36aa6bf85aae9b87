package shim

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// recheck is how often a log that nobody reads is looked at anew.
const recheck = 5 * time.Second

// fifoLog writes to the fifo from which containerd copies the shim's log.
// containerd can end and come back, with the same fifo or another: a line that
// cannot be written at once is dropped, so that the log never holds up a pod.
type fifoLog struct {
	path string

	mu      sync.Mutex
	file    *os.File
	checked time.Time
}

// openLog opens both ends of the fifo, so that it neither waits for a reader
// nor breaks when the reader goes.
func openLog(path string) (*fifoLog, error) {
	l := &fifoLog{path: path}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("log fifo: %w", err)
	}
	return l, nil
}

func (l *fifoLog) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.checked = f, time.Now()
	return nil
}

// Write always takes the line; see fifoLog for what becomes of it.
func (l *fifoLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.checked) > recheck {
		l.checked = time.Now()
		if l.replaced() {
			_ = l.open() // or keep the old one
		}
	}
	conn, err := l.file.SyscallConn()
	if err != nil {
		return len(line), nil
	}
	// Not File.Write, which would wait for room.
	_ = conn.Write(func(fd uintptr) bool {
		for {
			_, err := unix.Write(int(fd), line)
			if !errors.Is(err, unix.EINTR) {
				return true
			}
		}
	})
	return len(line), nil
}

func (l *fifoLog) replaced() bool {
	now, err := os.Stat(l.path)
	if err != nil {
		return false
	}
	mine, err := l.file.Stat()
	return err == nil && !os.SameFile(now, mine)
}

func (l *fifoLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}
