package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/google/uuid"
)

// identity is what tells a filesystem from a copy of it.
type identity struct {
	uuid     uuid.UUID
	hashSeed [16]byte // of the directories' hash; a fresh filesystem has none that is hashed
}

// Where the superblock has what is read and written here; see
// Documentation/filesystems/ext4/super.rst of Linux.
const (
	atFirstBlock   = 0x14
	atPerGroup     = 0x20
	atMagic        = 0x38
	atGroup        = 0x5A
	atCompat       = 0x5C
	atIncompat     = 0x60
	atROCompat     = 0x64
	atUUID         = 0x68
	atHashSeed     = 0xEC
	atChecksumType = 0x175
	atBackupGroups = 0x24C
	atChecksum     = 0x3FC

	compatSparse2      = 0x200
	incompatSeed       = 0x2000
	roCompatSparse     = 0x1
	roCompatChecksums  = 0x400
	checksumTypeCRC32C = 1
	mostBlocksPerGroup = 64 << 13 << 3 // a bitmap of one block of 64 KiB
)

// super is a superblock with what it says about its copies.
type super struct {
	raw       [superSize]byte
	size      int64 // of the filesystem, in bytes
	blockSize int64
	first     int64 // block
	perGroup  int64 // blocks
	groups    int64
}

// readSuper reads the first superblock, and makes sure that its UUID can be
// changed: without a seed of its own, all checksums in the filesystem would
// change with it.
func readSuper(r io.ReaderAt) (*super, error) {
	size, err := length(r)
	if err != nil {
		return nil, err
	}
	s := &super{size: int64(size)}
	if _, err := r.ReadAt(s.raw[:], superOffset); err != nil {
		return nil, err
	}
	if !s.has(atIncompat, incompatSeed) || !s.has(atROCompat, roCompatChecksums) || s.raw[atChecksumType] != checksumTypeCRC32C {
		return nil, errors.New("lacks the features metadata_csum and metadata_csum_seed")
	}
	if got := s.word(atChecksum); got != checksum(s.raw[:]) {
		return nil, fmt.Errorf("has a superblock with checksum %#08x, want %#08x", got, checksum(s.raw[:]))
	}
	s.blockSize = 1 << (10 + s.word(atLogBlock))
	s.first, s.perGroup = int64(s.word(atFirstBlock)), int64(s.word(atPerGroup))
	blocks := s.size / s.blockSize
	if s.first > 1 || s.perGroup == 0 || s.perGroup > mostBlocksPerGroup || blocks <= s.first {
		return nil, fmt.Errorf("has a corrupt superblock: %d blocks from %d, %d in a group", blocks, s.first, s.perGroup)
	}
	s.groups = (blocks - s.first + s.perGroup - 1) / s.perGroup
	return s, nil
}

func (s *super) word(at int) uint32            { return binary.LittleEndian.Uint32(s.raw[at:]) }
func (s *super) has(at int, flags uint32) bool { return s.word(at)&flags == flags }

// copies are the groups with a copy of the superblock, besides the first group.
func (s *super) copies() []int64 {
	var list []int64
	add := func(group int64) {
		if group > 0 && group < s.groups {
			list = append(list, group)
		}
	}
	switch {
	case s.has(atCompat, compatSparse2):
		add(int64(s.word(atBackupGroups)))
		add(int64(s.word(atBackupGroups + 4)))
	case s.has(atROCompat, roCompatSparse):
		add(1)
		for _, base := range []int64{3, 5, 7} {
			for group := base; group < s.groups; group *= base {
				add(group)
			}
		}
	default:
		for group := range s.groups {
			add(group)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// file is what an identity is written to.
type file interface {
	io.ReaderAt
	io.WriterAt
}

// write gives the filesystem in f this identity, in all its superblocks.
func (id identity) write(f file) error {
	s, err := readSuper(f)
	if err != nil {
		return err
	}
	if err := id.writeAt(f, superOffset, 0); err != nil {
		return err
	}
	for _, group := range s.copies() {
		if err := id.writeAt(f, (s.first+group*s.perGroup)*s.blockSize, group); err != nil {
			return err
		}
	}
	return nil
}

func (id identity) writeAt(f file, off, group int64) error {
	var raw [superSize]byte
	if _, err := f.ReadAt(raw[:], off); err != nil {
		return fmt.Errorf("has no superblock in group %d: %w", group, err)
	}
	le := binary.LittleEndian
	if le.Uint16(raw[atMagic:]) != superMagic || le.Uint16(raw[atGroup:]) != uint16(group) || le.Uint32(raw[atChecksum:]) != checksum(raw[:]) {
		return fmt.Errorf("has no superblock in group %d", group)
	}
	copy(raw[atUUID:], id.uuid[:])
	copy(raw[atHashSeed:], id.hashSeed[:])
	le.PutUint32(raw[atChecksum:], checksum(raw[:]))
	_, err := f.WriteAt(raw[:], off)
	return err
}

// checksum is that of a superblock: CRC-32C from all ones on, which is not
// inverted in the end as Go does it.
func checksum(raw []byte) uint32 { return ^crc32.Checksum(raw[:atChecksum], castagnoli) }
