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

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/rootfs/internal/tool"
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
// made for key, and that its device table is that of the layers. It is the
// caller's to close, and stays marked as in use until then. The error is
// os.ErrNotExist if there is no entry; any other means that it is of no use.
func readEntry(path string, key [sha256.Size]byte, layers []*erofs.Image) (meta *erofs.Image, err error) {
	f, err := files.Open(path, files.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := use(f); err != nil {
		return nil, err
	}
	if meta, err = erofs.Inspect(f); err != nil {
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
func build(ctx context.Context, mkfs tool.State, path string, key [sha256.Size]byte, layers []*erofs.Image, replace bool) error {
	dir := filepath.Dir(path)
	f, err := files.Nameless(dir)
	if err != nil {
		return fmt.Errorf("fsmeta cache: %w", err)
	}
	defer f.Close()
	if err := mergeLayers(ctx, mkfs, f, entryUUID(key).String(), layers); err != nil {
		return err
	}
	made, err := files.Of(f)
	if err != nil {
		return fmt.Errorf("fsmeta cache %q: %w", dir, err)
	}
	meta, err := erofs.Inspect(made)
	if err != nil {
		return fmt.Errorf("%w: it made no usable image: %w", ErrBuild, err)
	}
	if err := erofs.CheckDevices(meta, layers); err != nil {
		return fmt.Errorf("%w: it made no usable image: %w", ErrBuild, err)
	}
	if err := sealFile(f, meta); err != nil {
		return fmt.Errorf("fsmeta cache %q: %w", dir, err)
	}
	// Another builder's entry under the name is as good.
	if err := files.Publish(f, path, replace); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("fsmeta cache %q: %w", dir, err)
	}
	return nil
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
