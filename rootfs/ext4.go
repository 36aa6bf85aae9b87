package rootfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
)

// ErrUpper is a writable image that is not a whole ext4 filesystem.
var ErrUpper = errors.New("writable image cannot be used")

// Where the superblock of ext4 has what is read of it; see
// Documentation/filesystems/ext4/super.rst of Linux.
const (
	ext4SuperOffset = 1024
	ext4SuperSize   = 1024
	ext4Magic       = 0xEF53
	ext4Is64Bit     = 0x80
	ext4MaxLogBlock = 6 // blocks of 64 KiB
)

// inspectUpper checks that the file at path holds an ext4 filesystem as long
// as its superblock says, and returns the length of the file in bytes.
func inspectUpper(path string) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("open writable image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("writable image: %w", err)
	}
	switch size := info.Size(); {
	case !info.Mode().IsRegular():
		return 0, fmt.Errorf("%w: %q is not a regular file (%s)", ErrUpper, path, info.Mode().Type())
	case size == 0:
		return 0, fmt.Errorf("%w: %q is empty", ErrUpper, path)
	case size%erofs.SectorSize != 0:
		return 0, fmt.Errorf("%w: %q has a length that is not a multiple of 512 bytes: %d", ErrUpper, path, size)
	}
	length, err := ext4Length(f)
	if err != nil {
		return 0, fmt.Errorf("%w: %q %w", ErrUpper, path, err)
	}
	if length > uint64(info.Size()) {
		return 0, fmt.Errorf("%w: %q is truncated: %d bytes, its superblock says %d", ErrUpper, path, info.Size(), length)
	}
	return info.Size(), nil
}

// ext4Length is how long, in bytes, the superblock says that the filesystem is.
func ext4Length(r io.ReaderAt) (uint64, error) {
	var raw [ext4SuperSize]byte
	if _, err := r.ReadAt(raw[:], ext4SuperOffset); err != nil {
		return 0, fmt.Errorf("has no ext4 superblock: %w", err)
	}
	le := binary.LittleEndian
	if magic := le.Uint16(raw[0x38:]); magic != ext4Magic {
		return 0, fmt.Errorf("is not ext4: magic number is %#04x, want %#04x", magic, ext4Magic)
	}
	logBlock := le.Uint32(raw[0x18:])
	if logBlock > ext4MaxLogBlock {
		return 0, fmt.Errorf("has a corrupt superblock: block size 2^%d", 10+uint64(logBlock))
	}
	blocks := uint64(le.Uint32(raw[0x04:]))
	if le.Uint32(raw[0x60:])&ext4Is64Bit != 0 {
		blocks |= uint64(le.Uint32(raw[0x150:])) << 32
	}
	const maxBlocks = 1 << 46 // with the largest block still inside an int64
	if blocks == 0 || blocks > maxBlocks {
		return 0, fmt.Errorf("has a corrupt superblock: %d blocks", blocks)
	}
	return blocks << (10 + logBlock), nil
}
