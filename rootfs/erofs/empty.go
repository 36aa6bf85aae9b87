package erofs

import "encoding/binary"

// emptySize is one block.
const emptySize = 4096

// Empty is an image whose root directory has mode 0755, belongs to root and has
// nothing in it. It is the same at every call.
func Empty() []byte {
	const (
		rootAt     = superOffset + superSize
		inodeSize  = 32
		inlineTail = 2 << 1 // compact inode whose data follow it
		isDir      = 0o040000
		typeDir    = 2
	)
	le := binary.LittleEndian
	image := make([]byte, emptySize)

	super := image[superOffset:]
	le.PutUint32(super, superMagic)
	super[12] = 12                                   // blocks of 4 KiB
	le.PutUint16(super[14:], rootAt/inodeSize)       // the root's number
	le.PutUint64(super[16:], 1)                      // inodes
	le.PutUint32(super[36:], 1)                      // blocks
	copy(super[48:], "empty\x00\x80\x00\x80erofsvm") // UUID of one's own making, version 8

	// A directory's names follow its entries of 12 bytes each.
	data := make([]byte, 2*12)
	for i := range 2 {
		entry := data[i*12:]
		le.PutUint64(entry, rootAt/inodeSize)
		le.PutUint16(entry[8:], uint16(len(data)+i))
		entry[10] = typeDir
	}
	data = append(data, "..."...) // the one, and the other with two dots

	inode := image[rootAt:]
	le.PutUint16(inode, inlineTail)
	le.PutUint16(inode[4:], isDir|0o755)
	le.PutUint16(inode[6:], 2) // links
	le.PutUint32(inode[8:], uint32(len(data)))
	le.PutUint32(inode[20:], 1) // inode number for stat
	copy(inode[inodeSize:], data)
	return image
}
