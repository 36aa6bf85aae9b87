// Package gpt lays partitions out on a disk and writes the GUID partition
// table for them, as bytes: what stands before the first partition and what
// stands behind the last.
//
// It owns the geometry and the two copies of the table, and nothing else: it
// opens no file, starts no goroutine, and the same partitions make the same
// bytes. Every function may be called from any goroutine.
//
// The format is that of chapter 5 of the UEFI specification, version 2.10, with
// sectors of 512 bytes. The reader that counts is block/partitions/efi.c of
// Linux, in the guest.
package gpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unicode/utf16"

	"github.com/google/uuid"
)

const (
	// SectorSize is the unit of all lengths and places here, in bytes.
	SectorSize = 512

	// Alignment is what partitions start at a multiple of: 1 MiB, in sectors.
	Alignment = 1 << 20 / SectorSize

	// MaxPartitions is how many partitions of a disk Linux takes: its
	// DISK_MAX_PARTS counts the whole disk as one more.
	MaxPartitions = 255

	entrySize   = 128
	entriesStep = 128 // the least that the specification allows, and what tools expect
	headerSize  = 92

	// maxSectors keeps every byte offset inside an int64.
	maxSectors = 1 << 52
)

// ErrLayout is a set of partitions for which there is no table.
var ErrLayout = errors.New("partitions cannot be laid out")

// linuxData is the partition type "Linux filesystem data".
var linuxData = uuid.MustParse("0FC63DAF-8483-4772-8E79-3D69D8477DE4")

// Content is what a partition is to hold.
type Content struct {
	Sectors int64
	ID      uuid.UUID // unique GUID of the partition
	Name    string    // at most 36 UTF-16 units
}

// Partition is where a content lies.
type Partition struct {
	Start, Sectors int64
}

// Layout is a disk with a table. Its sectors are Primary, then the partitions
// with zeros between them, then Backup.
type Layout struct {
	Sectors    int64       // of the whole disk
	Partitions []Partition // in the order of the contents; the first has number 1
	Primary    []byte      // from sector 0: protective MBR, header, entries
	Backup     []byte      // up to the last sector: entries, header
}

// BackupStart is the first sector of Backup.
func (l *Layout) BackupStart() int64 { return l.Sectors - int64(len(l.Backup))/SectorSize }

// New lays the contents out one after the other. The GUID of the disk is id.
func New(id uuid.UUID, contents []Content) (*Layout, error) {
	if len(contents) == 0 || len(contents) > MaxPartitions {
		return nil, fmt.Errorf("%w: there are %d, 1 to %d are possible; Linux finds no more on a disk", ErrLayout, len(contents), MaxPartitions)
	}
	entries := make([]byte, roundUp(int64(len(contents)), entriesStep)*entrySize)
	tableSectors := int64(len(entries)) / SectorSize
	l := &Layout{Partitions: make([]Partition, 0, len(contents))}
	firstUsable := 2 + tableSectors
	next := int64(Alignment)
	for i, c := range contents {
		if c.Sectors <= 0 || c.Sectors > maxSectors || next > maxSectors {
			return nil, fmt.Errorf("%w: partition %d would have %d sectors from %d on", ErrLayout, i+1, c.Sectors, next)
		}
		if err := putEntry(entries[i*entrySize:], c, next); err != nil {
			return nil, fmt.Errorf("%w: partition %d: %w", ErrLayout, i+1, err)
		}
		l.Partitions = append(l.Partitions, Partition{Start: next, Sectors: c.Sectors})
		next = roundUp(next+c.Sectors, Alignment)
	}
	l.Sectors = next + tableSectors + 1

	h := header{
		disk: id, last: l.Sectors - 1, firstUsable: firstUsable, lastUsable: next - 1,
		count: uint32(len(entries) / entrySize), sum: crc32.ChecksumIEEE(entries),
	}
	l.Primary = append(protectiveMBR(l.Sectors), h.bytes(1, h.last, 2)...)
	l.Primary = append(l.Primary, entries...)
	l.Backup = append(entries, h.bytes(h.last, 1, next)...)
	return l, nil
}

// putEntry writes the entry of a partition that starts at the given sector.
func putEntry(entry []byte, c Content, start int64) error {
	name := utf16.Encode([]rune(c.Name))
	if len(name) > 36 {
		return fmt.Errorf("name %q has %d UTF-16 units, at most 36 are possible", c.Name, len(name))
	}
	le := binary.LittleEndian
	putGUID(entry, linuxData)
	putGUID(entry[16:], c.ID)
	le.PutUint64(entry[32:], uint64(start))
	le.PutUint64(entry[40:], uint64(start+c.Sectors-1))
	for i, unit := range name {
		le.PutUint16(entry[56+2*i:], unit)
	}
	return nil
}

// header is what both copies of the header have in common.
type header struct {
	disk                    uuid.UUID
	last                    int64 // sector of the disk
	firstUsable, lastUsable int64
	count, sum              uint32 // of the entries
}

// bytes is the header, for the sector self, whose other copy is at other.
func (h *header) bytes(self, other, entries int64) []byte {
	b := make([]byte, SectorSize)
	le := binary.LittleEndian
	copy(b, "EFI PART")
	le.PutUint32(b[8:], 0x00010000)
	le.PutUint32(b[12:], headerSize)
	le.PutUint64(b[24:], uint64(self))
	le.PutUint64(b[32:], uint64(other))
	le.PutUint64(b[40:], uint64(h.firstUsable))
	le.PutUint64(b[48:], uint64(h.lastUsable))
	putGUID(b[56:], h.disk)
	le.PutUint64(b[72:], uint64(entries))
	le.PutUint32(b[80:], h.count)
	le.PutUint32(b[84:], entrySize)
	le.PutUint32(b[88:], h.sum)
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:headerSize])) // of itself as zero
	return b
}

// protectiveMBR claims the whole disk for one partition of type 0xEE, without
// which Linux does not look for a GUID partition table.
func protectiveMBR(sectors int64) []byte {
	b := make([]byte, SectorSize)
	entry := b[446:]
	copy(entry[1:], []byte{0x00, 0x02, 0x00}) // first sector, in cylinders, heads and sectors
	entry[4] = 0xEE
	copy(entry[5:], []byte{0xFF, 0xFF, 0xFF})
	binary.LittleEndian.PutUint32(entry[8:], 1)
	binary.LittleEndian.PutUint32(entry[12:], uint32(min(sectors-1, 0xFFFFFFFF)))
	b[510], b[511] = 0x55, 0xAA
	return b
}

// putGUID writes id as EFI has it: the first three fields little-endian.
func putGUID(b []byte, id uuid.UUID) {
	be, le := binary.BigEndian, binary.LittleEndian
	le.PutUint32(b, be.Uint32(id[0:]))
	le.PutUint16(b[4:], be.Uint16(id[4:]))
	le.PutUint16(b[6:], be.Uint16(id[6:]))
	copy(b[8:16], id[8:])
}

func roundUp(n, step int64) int64 { return (n + step - 1) / step * step }
