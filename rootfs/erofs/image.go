package erofs

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Image is a file that holds an EROFS image, as it was when it was looked at.
type Image struct {
	Path  string
	Size  int64 // of the file, in bytes; what follows the image may end anywhere
	Super *Superblock

	// Dev, Inode and ModTime, with Size, tell this state of the file from any
	// other: a file that is replaced or written to differs in one of them.
	Dev, Inode uint64
	ModTime    time.Time
}

// Inspect opens the file at path, checks that it is a whole EROFS image, and
// closes it. Symbolic links are followed. Errors name the path.
//
// It does so with bare system calls, as a plan may look at hundreds of layers:
// an os.File would cost as many calls again to find out that it cannot be
// polled.
func Inspect(path string) (*Image, error) {
	fd, err := open(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return inspect(path, fd)
}

// Open is Inspect for who wants to read on; the file is the caller's to close.
func Open(path string) (*os.File, *Image, error) {
	fd, err := open(path)
	if err != nil {
		return nil, nil, err
	}
	image, err := inspect(path, fd)
	if err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), path), image, nil
}

// InspectFile is Inspect for a file that is already open; it stays open, and
// its offset does not move.
func InspectFile(f *os.File) (*Image, error) { return inspect(f.Name(), int(f.Fd())) }

func open(path string) (fd int, err error) {
	for {
		// Without O_NONBLOCK the open of a FIFO would wait for a writer.
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return 0, fmt.Errorf("open EROFS image: %w", &os.PathError{Op: "open", Path: path, Err: err})
		}
	}
}

func inspect(path string, fd int) (*Image, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, fmt.Errorf("EROFS image: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("EROFS image %q: %w", path, ErrNotRegular)
	case stat.Size == 0:
		return nil, fmt.Errorf("EROFS image %q: %w", path, ErrEmpty)
	}
	super, err := ReadSuperblock(file(fd), stat.Size)
	if err != nil {
		return nil, fmt.Errorf("EROFS image %q: %w", path, err)
	}
	image := &Image{
		Path: path, Size: stat.Size, Super: super,
		Dev: uint64(stat.Dev), Inode: stat.Ino, ModTime: time.Unix(stat.Mtim.Unix()),
	}
	if image.End() > image.Size {
		return nil, fmt.Errorf("EROFS image %q: %w: %d bytes, the tar behind its index ends at %d", path, ErrTruncated, image.Size, image.End())
	}
	return image, nil
}

// file reads a descriptor.
type file int

func (f file) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(int(f), p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrUnexpectedEOF
		}
		done += max(n, 0)
	}
	return done, nil
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
