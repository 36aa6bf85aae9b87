package erofs

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/erofsvm/erofsvm/rootfs/files"
)

// Image is a file that holds an EROFS image, as it was when it was looked at.
// What follows the image in the file may end anywhere.
type Image struct {
	*files.File
	Super *Superblock
}

// Inspect checks that f is a whole EROFS image. It stays the caller's. Errors
// name the path.
func Inspect(f *files.File) (*Image, error) {
	switch {
	case !f.Regular:
		return nil, fmt.Errorf("EROFS image %q: %w", f.Path, ErrNotRegular)
	case f.Size == 0:
		return nil, fmt.Errorf("EROFS image %q: %w", f.Path, ErrEmpty)
	}
	super, err := ReadSuperblock(f, f.Size)
	if err != nil {
		return nil, fmt.Errorf("EROFS image %q: %w", f.Path, err)
	}
	image := &Image{File: f, Super: super}
	if image.End() > image.Size {
		return nil, fmt.Errorf("EROFS image %q: %w: %d bytes, the tar behind its index ends at %d", f.Path, ErrTruncated, image.Size, image.End())
	}
	return image, nil
}

// RootMode is the mode of the root directory, type and all as in stat(2). It is
// for warnings only: what cannot be read has none, and is for the guest's kernel
// to refuse.
func (i *Image) RootMode() (mode uint16, ok bool) {
	if at := i.Super.rootAt; at >= 0 && at+inodeSlot <= i.Super.Bytes() {
		var inode [inodeSlot]byte
		_, err := i.ReadAt(inode[:], at)
		return binary.LittleEndian.Uint16(inode[4:]), err == nil
	}
	return 0, false
}

// TarIndex says whether the image is an index of a tar that follows it in the
// same file, as mkfs.erofs --tar=i makes it: the tar is the only device, and is
// not named.
func (i *Image) TarIndex() bool {
	s := i.Super
	return s.BlockSize == SectorSize && len(s.Devices) == 1 && s.Devices[0].Tag == "" && s.Devices[0].Start == s.Blocks
}

// DeviceRange is where, in the file, the bytes lie that stand for the image
// where it is a device of another: all of it, or the tar without its index.
func (i *Image) DeviceRange() (offset, length int64) {
	if i.TarIndex() {
		return i.Super.Bytes(), i.Super.Devices[0].Blocks * i.Super.BlockSize
	}
	return 0, i.Super.Bytes()
}

// End is how long the file must be for the image by itself to be whole, with
// the tar that follows an index.
func (i *Image) End() int64 {
	if i.TarIndex() {
		return i.Super.Bytes() + i.Super.Devices[0].Blocks*i.Super.BlockSize
	}
	return i.Super.Bytes()
}

// CheckDevices makes sure that the device table of meta describes the given
// images, in that order, and that they lie in its address space one after the
// other, right behind meta itself. Only then does a disk made of meta and the
// images, each as long as its blocks, read as one filesystem: the kernel finds
// a device by the start in its slot alone, and a wrong order mounts without
// complaint.
func CheckDevices(meta *Image, devices []*Image) error {
	super := meta.Super
	mismatch := func(format string, args ...any) error {
		return fmt.Errorf("EROFS image %q: %w: %s", meta.Path, ErrMismatch, fmt.Sprintf(format, args...))
	}
	if len(super.Devices) != len(devices) {
		return mismatch("it has %d devices, %d are given", len(super.Devices), len(devices))
	}
	next := super.Blocks
	for i, slot := range super.Devices {
		image := devices[i]
		_, length := image.DeviceRange()
		switch {
		case image.Super.BlockSize != super.BlockSize:
			return mismatch("device %d, %q, has blocks of %d bytes, the table of %d", i, image.Path, image.Super.BlockSize, super.BlockSize)
		case len(image.Super.Devices) != 0 && !image.TarIndex():
			return mismatch("device %d, %q, has devices of its own", i, image.Path)
		case slot.Tag != hex.EncodeToString(image.Super.UUID[:]):
			return mismatch("device %d has tag %q, but %q has UUID %x; are the devices in the order of the table?", i, slot.Tag, image.Path, image.Super.UUID[:])
		case slot.Blocks != length/super.BlockSize:
			return mismatch("device %d has %d blocks, but %q has %d", i, slot.Blocks, image.Path, length/super.BlockSize)
		case slot.Start != next:
			return mismatch("device %d (%q) starts at block %d, the ones before it end at %d", i, image.Path, slot.Start, next)
		}
		next += slot.Blocks
	}
	return nil
}
