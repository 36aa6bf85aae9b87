package erofs

import (
	"encoding/hex"
	"fmt"
	"os"
	"syscall"
	"time"
)

// Image is a file that holds an EROFS image, as it was when it was looked at.
type Image struct {
	Path  string
	Size  int64 // of the file, in bytes
	Super *Superblock

	// Dev, Inode and ModTime, with Size, tell this state of the file from any
	// other: a file that is replaced or written to differs in one of them.
	Dev, Inode uint64
	ModTime    time.Time
}

// Inspect opens the file at path, checks that it is a whole EROFS image, and
// closes it. Symbolic links are followed. Errors name the path.
func Inspect(path string) (*Image, error) {
	f, image, err := Open(path)
	if err != nil {
		return nil, err
	}
	f.Close()
	return image, nil
}

// Open is Inspect for who wants to read on; the file is the caller's to close.
func Open(path string) (*os.File, *Image, error) {
	// Without O_NONBLOCK the open of a FIFO would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open EROFS image: %w", err)
	}
	image, err := InspectFile(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, image, nil
}

// InspectFile is Inspect for a file that is already open; it stays open, and
// its offset does not move.
func InspectFile(f *os.File) (*Image, error) {
	path := f.Name()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("EROFS image: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch size := info.Size(); {
	case !info.Mode().IsRegular() || !ok:
		return nil, fmt.Errorf("EROFS image %q: %w (%s)", path, ErrNotRegular, info.Mode().Type())
	case size == 0:
		return nil, fmt.Errorf("EROFS image %q: %w", path, ErrEmpty)
	case size%SectorSize != 0:
		return nil, fmt.Errorf("EROFS image %q: %w: %d", path, ErrNotAligned, size)
	}
	super, err := ReadSuperblock(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("EROFS image %q: %w", path, err)
	}
	image := &Image{
		Path: path, Size: info.Size(), Super: super,
		Dev: uint64(stat.Dev), Inode: stat.Ino, ModTime: info.ModTime(),
	}
	if image.End() > image.Size {
		return nil, fmt.Errorf("EROFS image %q: %w: %d bytes, the tar behind its index ends at %d", path, ErrTruncated, image.Size, image.End())
	}
	return image, nil
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
