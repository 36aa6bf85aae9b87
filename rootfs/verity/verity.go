// Package verity reads what containerd keeps about a layer that is protected
// by dm-verity: the file with the root hash, and the superblock of the hash
// tree, which stands behind the layer's data in the layer's own file.
//
// It owns that reading and nothing else: it computes no hash, opens no device
// and starts no goroutine. Both functions may be called from any goroutine. That
// the data match the root hash is for the guest's kernel to find, at each read;
// what is checked here is that the tree covers the layer and lies within its
// file, so that nothing the guest mounts is left unprotected.
//
// The metadata file is the one of internal/dmverity in containerd 2.4. The
// superblock is version 1 of cryptsetup's, described in its wiki page
// DMVerity; the tree is that of Documentation/admin-guide/device-mapper/verity.rst
// of Linux.
package verity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/erofsvm/erofsvm/rootfs/files"
)

// Errors that Read and ReadMetadata wrap.
var (
	// ErrMetadata is a metadata file that is not one.
	ErrMetadata = errors.New("dm-verity metadata cannot be used")
	// ErrTree is a hash tree that does not protect the layer.
	ErrTree = errors.New("dm-verity hash tree cannot be used")
)

// maxMetadata bounds the metadata file, in bytes; containerd's has about 120.
const maxMetadata = 16 << 10

// Where the superblock has what is read of it.
const (
	superSize  = 512
	superMagic = "verity\x00\x00"
	hashType   = 1 // salt in front, digests padded to powers of two
)

// digests are the lengths, in bytes, of what the algorithms yield that are
// taken; the guest's kernel must have them.
var digests = map[string]int{"sha256": 32, "sha512": 64}

// Tree is a hash tree.
type Tree struct {
	RootHash   string // in lower-case hexadecimal digits
	HashOffset int64  // of the superblock, in bytes from the start of the file
}

// metadata is the file that containerd writes.
type metadata struct {
	RootHash   string `json:"roothash"`
	HashOffset uint64 `json:"hashoffset"`
}

// Read returns the tree that the metadata file at path names. The layer has
// size bytes, of which at least the first covered must be protected.
func Read(path string, layer io.ReaderAt, size, covered int64) (*Tree, error) {
	tree, err := ReadMetadata(path)
	if err != nil {
		return nil, err
	}
	if err := tree.check(layer, size, covered); err != nil {
		return nil, fmt.Errorf("%w: of %q: %w", ErrTree, path, err)
	}
	return tree, nil
}

// ReadMetadata reads the metadata file alone.
func ReadMetadata(path string) (*Tree, error) {
	fail := func(err error) error { return fmt.Errorf("%w: %q: %w", ErrMetadata, path, err) }
	f, err := files.Open(path, files.ReadOnly)
	if err != nil {
		return nil, fail(err)
	}
	defer f.Close()
	if !f.Regular {
		return nil, fail(errors.New("is not a regular file"))
	}
	data, err := io.ReadAll(io.NewSectionReader(f, 0, maxMetadata+1))
	if err != nil {
		return nil, fail(err)
	}
	tree, err := parse(data)
	if err != nil {
		return nil, fail(err)
	}
	return tree, nil
}

func parse(data []byte) (*Tree, error) {
	if len(data) > maxMetadata {
		return nil, fmt.Errorf("has more than %d bytes", maxMetadata)
	}
	var m metadata
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	root, err := hex.DecodeString(m.RootHash)
	if err != nil || (len(root) != 32 && len(root) != 64) {
		return nil, fmt.Errorf("root hash %.140q is not one of 64 or 128 hexadecimal digits", m.RootHash)
	}
	const maxOffset = 1 << 60 // so that no sum below overflows
	if m.HashOffset == 0 || m.HashOffset%superSize != 0 || m.HashOffset > maxOffset {
		return nil, fmt.Errorf("hash offset %d is not a place behind data, at a multiple of %d", m.HashOffset, superSize)
	}
	return &Tree{RootHash: strings.ToLower(m.RootHash), HashOffset: int64(m.HashOffset)}, nil
}

// check reads the superblock.
func (t *Tree) check(layer io.ReaderAt, size, covered int64) error {
	if t.HashOffset+superSize > size {
		return fmt.Errorf("it is said to start at %d, but the layer has %d bytes", t.HashOffset, size)
	}
	var raw [superSize]byte
	if _, err := layer.ReadAt(raw[:], t.HashOffset); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	le := binary.LittleEndian
	if string(raw[:8]) != superMagic || le.Uint32(raw[8:]) != 1 || le.Uint32(raw[12:]) != hashType {
		return fmt.Errorf("there is no superblock of version 1 and hash type 1 at %d", t.HashOffset)
	}
	name, _, _ := bytes.Cut(raw[32:64], []byte{0})
	digest, known := digests[string(name)]
	dataBlock, hashBlock := int64(le.Uint32(raw[64:])), int64(le.Uint32(raw[68:]))
	blocks := le.Uint64(raw[72:])
	switch {
	case !known:
		return fmt.Errorf("hash algorithm %.32q is not known (sha256, sha512 are)", name)
	case len(t.RootHash) != 2*digest:
		return fmt.Errorf("the root hash has %d digits, one of %s has %d", len(t.RootHash), name, 2*digest)
	case !blockSize(dataBlock) || !blockSize(hashBlock):
		return fmt.Errorf("blocks of %d and %d bytes are not powers of two from 512 to 65536", dataBlock, hashBlock)
	case t.HashOffset%hashBlock != 0:
		return fmt.Errorf("it starts at %d, which is not a multiple of its blocks of %d bytes", t.HashOffset, hashBlock)
	case le.Uint16(raw[80:]) > 256:
		return fmt.Errorf("its salt has %d bytes, at most 256 are possible", le.Uint16(raw[80:]))
	case blocks == 0 || blocks > uint64(t.HashOffset/dataBlock):
		return fmt.Errorf("it protects %d blocks of %d bytes, but itself starts at %d", blocks, dataBlock, t.HashOffset)
	case int64(blocks)*dataBlock < covered:
		return fmt.Errorf("it protects %d bytes, the layer has %d", int64(blocks)*dataBlock, covered)
	}
	if end := t.HashOffset + hashBlock*(1+treeBlocks(int64(blocks), hashBlock/int64(digest))); end > size {
		return fmt.Errorf("it ends at %d, but the layer has %d bytes", end, size)
	}
	return nil
}

func blockSize(n int64) bool { return n >= 512 && n <= 65536 && n&(n-1) == 0 }

// treeBlocks is how many blocks the hashes of n blocks take, with perBlock of
// them in each, the hashes of those blocks, and so on up to a single block. The
// root hash is that of the last one, and of the data itself if they are a single
// block: then there is no tree (drivers/md/dm-verity-target.c, verity_ctr).
func treeBlocks(n, perBlock int64) int64 {
	total := int64(0)
	for n > 1 {
		n = (n + perBlock - 1) / perBlock
		total += n
	}
	return total
}
