package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sum reads a disk to its end.
func sum(name string) (any, error) {
	f, err := os.Open(filepath.Join("/dev", name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return nil, err
	}
	return map[string]any{"sha256": hex.EncodeToString(h.Sum(nil)), "bytes": n}, nil
}

// fill writes so many bytes that are not zero to a file, which is a disk or on
// one, and then through to the disk.
func fill(path, count string) error {
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, ones{}, n)
	return errors.Join(err, f.Sync(), f.Close())
}

// ones is a source of bytes that are not zero.
type ones struct{}

func (ones) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0xff
	}
	return len(p), nil
}

// discard gives back all of a disk (block/ioctl.c, BLKDISCARD).
func discard(name string) error {
	f, err := os.OpenFile(filepath.Join("/dev", name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	extent := [2]uint64{0, uint64(size)}
	return ioctl(f, unix.BLKDISCARD, unsafe.Pointer(&extent))
}

func mountPoint(name string) string { return filepath.Join("/tmp", name) }

// mount mounts a disk at mountPoint.
func mount(name, fstype string) error {
	if err := os.MkdirAll(mountPoint(name), 0o755); err != nil {
		return err
	}
	if err := unix.Mount(filepath.Join("/dev", name), mountPoint(name), fstype, 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", name, err)
	}
	return nil
}

// fstrimRange is struct fstrim_range of include/uapi/linux/fs.h.
type fstrimRange struct{ start, length, minimum uint64 }

// fitrim is FITRIM of the same file, _IOWR('X', 121, struct fstrim_range).
const fitrim = 0xc0185879

// trim discards what a mounted filesystem does not use.
func trim(name string) error {
	f, err := os.Open(mountPoint(name))
	if err != nil {
		return err
	}
	defer f.Close()
	unix.Sync() // what was removed is free only once that is on the disk
	all := fstrimRange{length: 1<<64 - 1}
	return ioctl(f, fitrim, unsafe.Pointer(&all))
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}
