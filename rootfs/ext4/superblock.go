package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/erofsvm/erofsvm/rootfs/files"
)

// ErrImage is a file that is not a whole ext4 filesystem.
var ErrImage = errors.New("writable image cannot be used")

// Where the superblock has what is read of it; see
// Documentation/filesystems/ext4/super.rst of Linux.
const (
	sectorSize  = 512
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53
	atLogBlock  = 0x18
	is64Bit     = 0x80
	maxLogBlock = 6 // blocks of 64 KiB
)

// Inspect checks that f holds an ext4 filesystem as long as its superblock
// says, and that a disk can have its length. The error wraps ErrImage and names
// the path.
func Inspect(f *files.File) error {
	switch {
	case !f.Regular:
		return fmt.Errorf("%w: %q is not a regular file", ErrImage, f.Path)
	case f.Size == 0:
		return fmt.Errorf("%w: %q is empty", ErrImage, f.Path)
	case f.Size%sectorSize != 0:
		return fmt.Errorf("%w: %q has a length that is not a multiple of %d bytes: %d", ErrImage, f.Path, sectorSize, f.Size)
	}
	size, err := length(f)
	if err != nil {
		return fmt.Errorf("%w: %q %w", ErrImage, f.Path, err)
	}
	if size > uint64(f.Size) {
		return fmt.Errorf("%w: %q is truncated: %d bytes, its superblock says %d", ErrImage, f.Path, f.Size, size)
	}
	return nil
}

// length is how long, in bytes, the superblock says that the filesystem is.
func length(r io.ReaderAt) (uint64, error) {
	var raw [superSize]byte
	if _, err := r.ReadAt(raw[:], superOffset); err != nil {
		return 0, fmt.Errorf("has no ext4 superblock: %w", err)
	}
	le := binary.LittleEndian
	if magic := le.Uint16(raw[atMagic:]); magic != superMagic {
		return 0, fmt.Errorf("is not ext4: magic number is %#04x, want %#04x", magic, superMagic)
	}
	logBlock := le.Uint32(raw[atLogBlock:])
	if logBlock > maxLogBlock {
		return 0, fmt.Errorf("has a corrupt superblock: block size 2^%d", 10+uint64(logBlock))
	}
	blocks := uint64(le.Uint32(raw[0x04:]))
	if le.Uint32(raw[atIncompat:])&is64Bit != 0 {
		blocks |= uint64(le.Uint32(raw[0x150:])) << 32
	}
	const maxBlocks = 1 << 46 // with the largest block still inside an int64
	if blocks == 0 || blocks > maxBlocks {
		return 0, fmt.Errorf("has a corrupt superblock: %d blocks", blocks)
	}
	return blocks << (10 + logBlock), nil
}
