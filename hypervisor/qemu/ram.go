package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ramStep is how much of a template's memory is looked at or copied at a time, in bytes.
// What is copied is still in the processor's cache when it is written.
const ramStep = 256 << 10

// ramPage is the least that a hole is made of, in bytes.
const ramPage = 4 << 10

var zeroPage [ramPage]byte

// digHoles frees what of a file is zeros, without a change to its content: of a guest
// that has tidied up that is most of its memory.
func digHoles(f *os.File) error {
	buf := make([]byte, ramStep)
	for at := int64(0); ; at += ramStep {
		n, err := f.ReadAt(buf, at)
		for from, to := range runs(buf[:n], true) {
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at+int64(from), int64(to-from)); err != nil {
				return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// runs are the longest stretches of whole pages in b that are zeros, or those that are
// not, by where they begin and end. A part of a page at the end counts as one.
func runs(b []byte, zeros bool) func(yield func(from, to int) bool) {
	return func(yield func(from, to int) bool) {
		from := 0
		for at := 0; at < len(b); at += ramPage {
			page := b[at:min(at+ramPage, len(b))]
			if bytes.Equal(page, zeroPage[:len(page)]) == zeros {
				continue
			}
			if at > from && !yield(from, at) {
				return
			}
			from = at + len(page)
		}
		if len(b) > from {
			yield(from, len(b))
		}
	}
}

// ramCopy is a template's memory on its way into memory of a VM that a daemon can map.
// It is copied while QEMU starts, which has nothing to do with it until it loads the
// state.
type ramCopy struct {
	file *os.File // the VM's memory; QEMU opens it by the descriptor that it inherits
	stop context.CancelCauseFunc
	done chan struct{}
	err  error // set before done is closed
}

// copyRAM begins to copy. Memory of that size is the VM's whatever the template's is;
// the caller waits and closes, in this order or not.
func copyRAM(from *os.File, size int64) (*ramCopy, error) {
	file, err := newRAM(size)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancelCause(context.Background())
	c := &ramCopy{file: file, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		if err := copyData(ctx, file, from, size); err != nil {
			c.err = fmt.Errorf("copy %s: %w", from.Name(), err)
		}
	}()
	return c, nil
}

// wait returns when all is copied. A nil copy is.
func (c *ramCopy) wait(ctx context.Context) error {
	if c == nil {
		return nil
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the copy of the template's memory: %w", context.Cause(ctx))
	}
}

// close ends the copy, if it has not ended, and leaves the memory to QEMU. A nil copy
// has nothing to close.
func (c *ramCopy) close() {
	if c == nil {
		return
	}
	c.stop(os.ErrClosed)
	<-c.done // at most one step away
	c.file.Close()
}

// newRAM is memory without a name. Nobody can make it shorter, which would kill those
// that have mapped it.
func newRAM(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("erofsvm-ram", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "memory of the guest")
	if err := file.Truncate(size); err != nil {
		file.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		file.Close()
		return nil, os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
	}
	return file, nil
}

// copyData copies what is not zeros. The position of from, which others may have open
// as well, is never used but to ask where data lies.
func copyData(ctx context.Context, to, from *os.File, size int64) error {
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if info.Size() != size {
		return fmt.Errorf("it has %d bytes, and the guest's memory %d", info.Size(), size)
	}
	buf := make([]byte, ramStep)
	for at := int64(0); at < size; {
		begin, end, err := nextData(from, at, size)
		if err != nil {
			return err
		}
		for at = begin; at < end; at += ramStep {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			part := buf[:min(ramStep, end-at)]
			if _, err := from.ReadAt(part, at); err != nil {
				return err
			}
			for first, last := range runs(part, false) {
				if _, err := to.WriteAt(part[first:last], at+int64(first)); err != nil {
					return err
				}
			}
		}
		at = end
	}
	return nil
}

// nextData is the next stretch of a file that is no hole, from at on; an empty one at
// its end says that there is none.
func nextData(f *os.File, at, size int64) (begin, end int64, err error) {
	begin, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size, nil
	}
	if err == nil {
		end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
	}
	if err != nil {
		return 0, 0, &os.PathError{Op: "lseek", Path: f.Name(), Err: err}
	}
	return begin, min(end, size), nil
}
