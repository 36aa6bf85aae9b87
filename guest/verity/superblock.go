package verity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Where the superblock has what is read of it: version 1 of cryptsetup's,
// described in its wiki page DMVerity.
const (
	superSize  = 512
	superMagic = "verity\x00\x00"
	hashType   = 1   // salt in front, digests padded to powers of two
	maxSalt    = 256 // bytes, what the superblock has room for
)

// digests are the lengths, in bytes, of what the algorithms yield that are
// taken. Weaker ones, with which an image could be made to fit a root hash, are
// not.
var digests = map[string]int{"sha256": 32, "sha512": 64}

// maxDataBlock is the kernel's bound on blocks of data, a page
// (drivers/md/dm-verity-target.c, verity_ctr).
const maxDataBlock = 4096

// tree is what a superblock says of the layer before it and of the hash tree
// behind it. It is no more than a claim: that the data match the root hash is
// for the kernel to find, with whatever is claimed here.
type tree struct {
	algorithm            string
	dataBlock, hashBlock uint64 // bytes
	blocks               uint64 // of data
	start                uint64 // of the tree, in blocks of hashes
	salt                 []byte
}

// readTree reads the superblock at offset bytes of a layer whose root hash has
// rootLen bytes.
func readTree(layer io.ReaderAt, offset uint64, rootLen int) (tree, error) {
	refuse := func(format string, args ...any) (tree, error) {
		return tree{}, fmt.Errorf("dm-verity superblock at %d: "+format+": %w", append(append([]any{offset}, args...), errdefs.ErrInvalidArgument)...)
	}
	var raw [superSize]byte
	_, err := layer.ReadAt(raw[:], int64(offset))
	if errors.Is(err, io.EOF) {
		return refuse("the layer ends before it does")
	}
	if err != nil {
		return tree{}, fmt.Errorf("dm-verity superblock at %d: %w", offset, err)
	}
	le := binary.LittleEndian
	if string(raw[:8]) != superMagic || le.Uint32(raw[8:]) != 1 || le.Uint32(raw[12:]) != hashType {
		return refuse("there is none of version 1 and hash type 1")
	}
	name, _, _ := bytes.Cut(raw[32:64], []byte{0})
	t := tree{
		algorithm: string(name),
		dataBlock: uint64(le.Uint32(raw[64:])),
		hashBlock: uint64(le.Uint32(raw[68:])),
		blocks:    le.Uint64(raw[72:]),
	}
	saltLen := int(le.Uint16(raw[80:]))
	digest, known := digests[t.algorithm]
	switch {
	case !known:
		return refuse("hash algorithm %.32q, sha256 and sha512 are there", t.algorithm)
	case digest != rootLen:
		return refuse("the root hash has %d bytes, those of %s have %d", rootLen, t.algorithm, digest)
	case !powerOfTwo(t.dataBlock) || t.dataBlock > maxDataBlock:
		return refuse("blocks of %d bytes, the kernel takes powers of two from 512 to %d", t.dataBlock, maxDataBlock)
	case !powerOfTwo(t.hashBlock) || t.hashBlock > 65536:
		return refuse("hash blocks of %d bytes are not a power of two from 512 to 65536", t.hashBlock)
	case offset%t.hashBlock != 0:
		return refuse("it is not at a multiple of its hash blocks of %d bytes", t.hashBlock)
	case saltLen > maxSalt:
		return refuse("a salt of %d bytes, at most %d are possible", saltLen, maxSalt)
	case t.blocks == 0 || t.blocks > offset/t.dataBlock:
		return refuse("it protects %d blocks of %d bytes, which do not fit in front of it", t.blocks, t.dataBlock)
	}
	t.salt = bytes.Clone(raw[88 : 88+saltLen])
	t.start = (offset + max(superSize, t.hashBlock)) / t.hashBlock
	return t, nil
}

func powerOfTwo(n uint64) bool { return n >= 512 && n&(n-1) == 0 }

// sectors is the length of the device.
func (t tree) sectors() uint64 { return t.blocks * t.dataBlock / 512 }

// target is the line of the target's parameters, as
// Documentation/admin-guide/device-mapper/verity.rst has them. Data and hashes
// are on the same device. There are no optional ones: a block that does not
// match is an error to whoever reads it, and to nobody else.
func (t tree) target(device, root string) string {
	salt := "-"
	if len(t.salt) > 0 {
		salt = hex.EncodeToString(t.salt)
	}
	return fmt.Sprintf("%d %s %s %d %d %d %d %s %s %s",
		hashType, device, device, t.dataBlock, t.hashBlock, t.blocks, t.start, t.algorithm, root, salt)
}
