package merge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
)

// An entry of the cache is the image that mkfs.erofs wrote, followed by one
// sector with a mark and the checksum of what stands before it. The sector
// lies behind the blocks of the image, where no disk made of it reaches.
//
// EROFS has a checksum of its own, but of its first block only.
const (
	sealSize = erofs.SectorSize
	sealMark = "erofsvm fsmeta\x00\x01"
)

var errCorrupt = errors.New("cache entry is corrupt")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal is the last sector of an entry whose image has the given checksum.
func seal(sum uint32) []byte {
	s := make([]byte, sealSize)
	n := copy(s, sealMark)
	binary.LittleEndian.PutUint32(s[n:], sum)
	return s
}

// entryUUID is the UUID of the fsmeta with the given key.
func entryUUID(key [sha256.Size]byte) uuid.UUID {
	// The version and variant bits of RFC 9562 for a UUID of one's own making.
	id := uuid.UUID(key[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// readEntry opens the entry at path and checks that it is whole, that it was
// made for key, and that its device table is that of the layers. The error is
// os.ErrNotExist if there is no entry; any other means that it is of no use.
func readEntry(path string, key [sha256.Size]byte, layers []*erofs.Image) (*erofs.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := use(f); err != nil {
		return nil, err
	}
	meta, err := erofs.InspectFile(f)
	if err != nil {
		return nil, err
	}
	if meta.Size != meta.Super.Bytes()+sealSize {
		return nil, fmt.Errorf("%q: %w: %d bytes, want %d", path, errCorrupt, meta.Size, meta.Super.Bytes()+sealSize)
	}
	sum, err := checksum(f, meta.Super.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	last := make([]byte, sealSize)
	if _, err := f.ReadAt(last, meta.Super.Bytes()); err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	if !bytes.Equal(last, seal(sum)) {
		return nil, fmt.Errorf("%q: %w: the checksum is not that of the content", path, errCorrupt)
	}
	if want := entryUUID(key); meta.Super.UUID != want {
		return nil, fmt.Errorf("%q: %w: it has UUID %s, want %s", path, errCorrupt, meta.Super.UUID, want)
	}
	if err := erofs.CheckDevices(meta, layers); err != nil {
		return nil, err
	}
	return meta, nil
}

func checksum(r io.ReaderAt, n int64) (uint32, error) {
	sum, buf := uint32(0), make([]byte, min(n, 64<<10))
	for at := int64(0); at < n; at += int64(len(buf)) {
		buf = buf[:min(n-at, int64(len(buf)))]
		if _, err := r.ReadAt(buf, at); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, buf)
	}
	return sum, nil
}

// build makes the entry at path. Of several builders at once the first one
// wins, unless what is there is known to be corrupt: then each puts its own in
// the place, which are all alike.
//
// The file has no name until it is whole and on the disk, so that nothing is
// left behind, whatever kills the process.
func build(ctx context.Context, mkfs tool, path string, key [sha256.Size]byte, layers []*erofs.Image, replace bool) error {
	dir := filepath.Dir(path)
	f, err := nameless(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := mergeLayers(ctx, mkfs, f, entryUUID(key).String(), layers); err != nil {
		return err
	}
	meta, err := erofs.InspectFile(f)
	if err != nil {
		return fmt.Errorf("%w: it made no usable image: %w", ErrBuild, err)
	}
	if err := erofs.CheckDevices(meta, layers); err != nil {
		return fmt.Errorf("%w: it made no usable image: %w", ErrBuild, err)
	}
	if err := sealFile(f, meta); err != nil {
		return fmt.Errorf("fsmeta cache %q: %w", dir, err)
	}
	if err := publish(f, path, replace); err != nil {
		return fmt.Errorf("fsmeta cache %q: %w", dir, err)
	}
	return nil
}

// nameless makes a file in dir that is gone when it is closed, unless published.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("fsmeta cache %q: make a file without a name: %w; the cache must be on a filesystem with O_TMPFILE, such as ext4, xfs, btrfs or tmpfs", dir, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir, "new entry")), nil
}

// sealFile ends the image with its seal, makes it read-only and durable.
func sealFile(f *os.File, meta *erofs.Image) error {
	if err := f.Truncate(meta.Super.Bytes()); err != nil {
		return err
	}
	sum, err := checksum(f, meta.Super.Bytes())
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(seal(sum), meta.Super.Bytes()); err != nil {
		return err
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	return f.Sync()
}

// publish gives the nameless file its name, and syncs the directory.
func publish(f *os.File, path string, replace bool) error {
	self := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.EEXIST) {
		if !replace {
			return nil
		}
		// A link never replaces a file, a rename does.
		aside := fmt.Sprintf("%s.%s", path, uuid.NewString())
		if err = unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, aside, unix.AT_SYMLINK_FOLLOW); err == nil {
			if err = os.Rename(aside, path); err != nil {
				os.Remove(aside)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("name %q: %w", path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
