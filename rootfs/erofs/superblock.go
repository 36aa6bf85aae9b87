// Package erofs reads of an EROFS image what is needed to lay images side by
// side on one disk: the superblock and the device table.
//
// It owns that reading and nothing else: it never mounts, never writes, opens
// and closes no file and starts no goroutine. Every function may be called
// from any goroutine. Images are untrusted; every field is checked against the
// length of the file before it is used, and a wrong one is an error.
//
// The format is that of fs/erofs/erofs_fs.h in Linux 6.12 and of erofs-utils 1.9.
package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// Reasons for which an image is not accepted; the errors of this package wrap
// one of them.
var (
	// ErrNotRegular is a directory, device, socket or the like.
	ErrNotRegular = errors.New("not a regular file")
	// ErrEmpty is a file without a byte.
	ErrEmpty = errors.New("file is empty")
	// ErrNotEROFS is a file without the magic number of EROFS.
	ErrNotEROFS = errors.New("not an EROFS image")
	// ErrTruncated is a file shorter than its superblock says.
	ErrTruncated = errors.New("file is truncated")
	// ErrCorrupt is an image with a field that cannot be.
	ErrCorrupt = errors.New("superblock is corrupt")
	// ErrUnsupported is an image with a feature that is not known here.
	ErrUnsupported = errors.New("image needs a feature that is not handled")
	// ErrMismatch is a device table that does not describe the given images.
	ErrMismatch = errors.New("device table does not match")
)

// SectorSize is the unit of disks and extents, in bytes.
const SectorSize = 512

const (
	superOffset = 1024
	superMagic  = 0xE0F5E1E2
	superSize   = 128 // without extension slots
	slotSize    = 128 // of the device table

	inodeSlot     = 32
	maxRootNumber = 1 << 40

	minBlockBits = 9
	maxBlockBits = 16 // the kernel stops at its page size, of which 64 KiB is the largest

	// maxBlocks keeps every byte offset, and every sum of the blocks of
	// [MaxDevices] images, well inside an int64.
	maxBlocks = 1 << 31

	// MaxDevices is the longest device table taken.
	MaxDevices = 4096
)

// Incompatible features, those that change where things lie.
const (
	featureDeviceTable = 0x00000008
	feature48Bit       = 0x00000080
	knownFeatures      = 0x000001ff // up to METABOX
)

// Superblock is what the start of an image says about its extent.
type Superblock struct {
	BlockSize int64     // bytes, a power of two from 512 to 64 KiB
	Blocks    int64     // of this image alone, without its devices
	UUID      uuid.UUID // of this image
	Features  uint32    // incompatible features
	Devices   []Device  // the device table, in its order

	rootAt int64 // offset of the root's inode, -1 if it is not in a place known here
}

// Device is a slot of the device table: another image whose blocks the file
// data of this one lies in.
type Device struct {
	Tag    string // what mkfs.erofs writes here is the hex UUID of the image
	Blocks int64  // in blocks of the image with the table
	Start  int64  // first block in the address space of the image with the table
}

// Bytes is the length of the image alone.
func (s *Superblock) Bytes() int64 { return s.Blocks * s.BlockSize }

// ReadSuperblock reads the superblock and the device table of an image of size
// bytes. It checks that the image proper lies within size; where its devices
// lie is for the caller to check.
func ReadSuperblock(r io.ReaderAt, size int64) (*Superblock, error) {
	var raw [superSize]byte
	if size < superOffset+superSize {
		return nil, fmt.Errorf("%w: %d bytes hold no superblock", ErrNotEROFS, size)
	}
	if _, err := r.ReadAt(raw[:], superOffset); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	le := binary.LittleEndian
	if magic := le.Uint32(raw[0:]); magic != superMagic {
		return nil, fmt.Errorf("%w: magic number is %#08x, want %#08x", ErrNotEROFS, magic, uint32(superMagic))
	}
	bits := raw[12]
	if bits < minBlockBits || bits > maxBlockBits {
		return nil, fmt.Errorf("%w: block size 2^%d is not between 2^%d and 2^%d", ErrCorrupt, bits, minBlockBits, maxBlockBits)
	}
	sb := &Superblock{
		BlockSize: 1 << bits,
		Blocks:    int64(le.Uint32(raw[36:])),
		UUID:      uuid.UUID(raw[48:64]),
		Features:  le.Uint32(raw[80:]),
	}
	if unknown := sb.Features &^ knownFeatures; unknown != 0 {
		return nil, fmt.Errorf("%w: incompatible features %#x", ErrUnsupported, unknown)
	}
	if sb.Features&feature48Bit != 0 {
		// With the feature, the high half of blocks takes the place of the
		// root's number.
		sb.Blocks |= int64(le.Uint16(raw[14:])) << 32
	}
	sb.rootAt = rootAt(raw[:], sb)
	if sb.Blocks == 0 || sb.Blocks > maxBlocks {
		return nil, fmt.Errorf("%w: %d blocks", ErrCorrupt, sb.Blocks)
	}
	if sb.Bytes() < superOffset+superSize {
		return nil, fmt.Errorf("%w: %d blocks of %d bytes end before the superblock does", ErrCorrupt, sb.Blocks, sb.BlockSize)
	}
	if sb.Bytes() > size {
		return nil, fmt.Errorf("%w: %d bytes, the superblock says %d", ErrTruncated, size, sb.Bytes())
	}
	if sb.Features&featureDeviceTable == 0 {
		return sb, nil
	}
	devices, slot := int(le.Uint16(raw[86:])), int64(le.Uint16(raw[88:]))
	return sb, sb.readDevices(r, devices, slot*slotSize)
}

// rootAt is where the root's inode lies: meta_blkaddr, and slots of 32 bytes.
func rootAt(raw []byte, sb *Superblock) int64 {
	le := binary.LittleEndian
	number := uint64(le.Uint16(raw[14:]))
	if sb.Features&feature48Bit != 0 {
		number = le.Uint64(raw[112:])
	}
	if number > maxRootNumber { // such as one with the bit of METABOX
		return -1
	}
	return int64(le.Uint32(raw[40:]))*sb.BlockSize + int64(number)*inodeSlot
}

// readDevices reads count slots at offset, which must lie within the image
// proper and behind the superblock.
func (s *Superblock) readDevices(r io.ReaderAt, count int, offset int64) error {
	if count == 0 {
		return nil
	}
	if count > MaxDevices {
		return fmt.Errorf("%w: %d devices, at most %d are taken", ErrUnsupported, count, MaxDevices)
	}
	end := offset + int64(count)*slotSize
	if offset < superOffset+superSize || end > s.Bytes() {
		return fmt.Errorf("%w: device table at %d to %d, the image ends at %d", ErrCorrupt, offset, end, s.Bytes())
	}
	table := make([]byte, count*slotSize)
	if _, err := r.ReadAt(table, offset); err != nil {
		return fmt.Errorf("read device table: %w", err)
	}
	le := binary.LittleEndian
	s.Devices = make([]Device, count)
	for i := range s.Devices {
		slot := table[i*slotSize:][:slotSize]
		s.Devices[i] = Device{
			Tag:    tagOf(slot[:64]),
			Blocks: int64(le.Uint32(slot[64:])),
			Start:  int64(le.Uint32(slot[68:])),
		}
		if s.Devices[i].Blocks > maxBlocks {
			return fmt.Errorf("%w: device %d has %d blocks", ErrCorrupt, i, s.Devices[i].Blocks)
		}
		// Kernels up to 6.18 ignore the high halves that follow, and their
		// width has changed since: no reading of them suits every guest.
		if le.Uint64(slot[72:]) != 0 {
			return fmt.Errorf("%w: device %d has more than 32 bits of blocks", ErrUnsupported, i)
		}
	}
	return nil
}

// tagOf is the text of a tag up to its first zero byte.
func tagOf(raw []byte) string {
	for i, c := range raw {
		if c == 0 {
			return string(raw[:i])
		}
	}
	return string(raw)
}
