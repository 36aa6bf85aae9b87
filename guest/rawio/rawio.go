// Package rawio reads and writes descriptors that never block, without telling
// Go's scheduler of each call.
//
// The scheduler takes the processor away from a thread that is in a system call
// for 20 microseconds and wakes another one for it (runtime.retake in Go's
// runtime/proc.go). Moving 64 KiB takes as long where the processor is emulated,
// and a change of threads, which flushes what the emulator knows of memory, costs
// more than the bytes do: of twelve changes for each 64 KiB of output more than
// half were of this kind. Descriptors that would block wait in Go's poller, as
// ever.
//
// Its functions may be called from any goroutine, and own nothing.
package rawio

import (
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads what there is, and waits while there is nothing. The descriptor of
// raw must be nonblocking. The end is io.EOF; a deadline that has passed is
// os.ErrDeadlineExceeded, a descriptor that was closed os.ErrClosed, and any other
// error a syscall.Errno.
func Read(raw syscall.RawConn, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var n uintptr
	var failed syscall.Errno
	if err := raw.Read(func(fd uintptr) bool {
		n, failed = call(unix.SYS_READ, fd, p)
		return failed != unix.EAGAIN
	}); err != nil {
		return 0, waiting(err)
	}
	switch {
	case failed != 0:
		return 0, failed
	case n == 0:
		return 0, io.EOF
	}
	return int(n), nil
}

// TryRead is a Read that does not wait: where there is nothing, or the end, it returns 0
// and an error that says so.
func TryRead(raw syscall.RawConn, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var n uintptr
	var failed syscall.Errno
	if err := raw.Control(func(fd uintptr) { n, failed = call(unix.SYS_READ, fd, p) }); err != nil {
		return 0, waiting(err)
	}
	switch {
	case failed != 0:
		return 0, failed
	case n == 0:
		return 0, io.EOF
	}
	return int(n), nil
}

// Write writes all of p, and waits while there is no room. Errors are those of
// Read.
func Write(raw syscall.RawConn, p []byte) (int, error) {
	written := 0
	var failed syscall.Errno
	if err := raw.Write(func(fd uintptr) bool {
		for written < len(p) {
			var n uintptr
			if n, failed = call(unix.SYS_WRITE, fd, p[written:]); failed != 0 {
				return failed != unix.EAGAIN
			}
			written += int(n)
		}
		return true
	}); err != nil {
		return written, waiting(err)
	}
	if failed != 0 {
		return written, failed
	}
	return written, nil
}

// ReadWriter is a descriptor whose methods are Read and Write. Raw must be of a
// nonblocking one.
type ReadWriter struct{ Raw syscall.RawConn }

// Read is the function Read.
func (f ReadWriter) Read(p []byte) (int, error) { return Read(f.Raw, p) }

// Write is the function Write.
func (f ReadWriter) Write(p []byte) (int, error) { return Write(f.Raw, p) }

// call makes a system call that does not block. p is not empty.
func call(number, fd uintptr, p []byte) (uintptr, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(number, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		if errno != unix.EINTR {
			return n, errno
		}
	}
}

// waiting is the error of a wait for a descriptor: its deadline, or that it was
// closed, for which package os has an error that it does not export.
func waiting(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return os.ErrClosed
}
