package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// copyBlock is what is copied or left out as a whole, in bytes: the least that
// most filesystems keep.
const copyBlock = 4096

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeros      [copyBlock]byte
)

// eachBlock hands over the blocks of the first size bytes that are not all
// zeros, in order, and returns the checksum of them and of where they lie. Where the holes are does not count, so that it is the same on
// every filesystem.
func eachBlock(ctx context.Context, f *os.File, size int64, do func(block []byte, off int64) error) (sum uint32, err error) {
	buf := make([]byte, 64<<10)
	for at := int64(0); at < size; {
		from, to, err := nextData(f, at, size)
		if err != nil {
			return 0, err
		}
		for from < to {
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			chunk := buf[:min(int64(len(buf)), to-from)]
			if _, err := f.ReadAt(chunk, from); err != nil {
				return 0, err
			}
			for block := range slices.Chunk(chunk, copyBlock) {
				if !bytes.Equal(block, zeros[:len(block)]) {
					var where [8]byte
					binary.LittleEndian.PutUint64(where[:], uint64(from))
					sum = crc32.Update(crc32.Update(sum, castagnoli, where[:]), castagnoli, block)
					if err := do(block, from); err != nil {
						return 0, err
					}
				}
				from += int64(len(block))
			}
		}
		at = to
	}
	return sum, nil
}

// nextData is the next range with data, from at on, in whole blocks but for the
// last; an empty one at size if there is none.
func nextData(f *os.File, at, size int64) (from, to int64, err error) {
	from, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && from >= size {
		return size, size, nil
	}
	if err == nil {
		to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find data: %w", err)
	}
	from -= from % copyBlock // at is a multiple of it
	to += (copyBlock - to%copyBlock) % copyBlock
	return from, min(to, size), nil
}

// seal is the last sector of a template whose content has the checksum.
func seal(sum uint32) (s [sealSize]byte) {
	n := copy(s[:], sealMark)
	binary.LittleEndian.PutUint32(s[n:], sum)
	return s
}
