package ext4_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs/ext4"
	"github.com/erofsvm/erofsvm/rootfs/files"
)

// super is a superblock of 256 blocks of 4 KiB.
func super() []byte {
	raw, le := make([]byte, 1024), binary.LittleEndian
	le.PutUint32(raw[0x04:], 256)
	le.PutUint32(raw[0x18:], 2)
	le.PutUint16(raw[0x38:], 0xEF53)
	return raw
}

// with is the superblock with a number in the place of another.
func with[T uint16 | uint32](raw []byte, at int, n T) []byte {
	if _, err := binary.Encode(raw[at:], binary.LittleEndian, n); err != nil {
		panic(err)
	}
	return raw
}

func inspect(t testing.TB, path string) error {
	t.Helper()
	f, err := files.Open(path, files.ReadOnly)
	must(t, err)
	defer f.Close()
	return ext4.Inspect(f)
}

func image(t testing.TB, super []byte, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rwlayer.img")
	must(t, os.WriteFile(path, append(make([]byte, 1024), super...), 0o600))
	must(t, os.Truncate(path, size))
	return path
}

func TestBadImagesAreToldApart(t *testing.T) {
	const whole = 256 * 4096
	for name, c := range map[string]struct {
		super []byte
		size  int64
		says  string // "" if it is good
	}{
		"whole":                  {super(), whole, ""},
		"longer file":            {super(), whole + 512, ""},
		"small blocks":           {with(super(), 0x18, uint32(0)), 256 * 1024, ""},
		"high bits, not in use":  {with(super(), 0x150, uint32(1)), whole, ""},
		"high bits":              {with(with(super(), 0x150, uint32(1)), 0x60, uint32(0x80)), whole, "truncated"},
		"one sector short":       {super(), whole - 512, "truncated"},
		"empty":                  {super(), 0, "empty"},
		"no room for a super":    {super(), 1536, "no ext4 superblock"},
		"odd length":             {super(), whole + 1, "multiple of 512"},
		"zeros":                  {nil, whole, "magic"},
		"other magic":            {with(super(), 0x38, uint16(0xEF54)), whole, "0xef54"},
		"huge blocks":            {with(super(), 0x18, uint32(7)), whole, "2^17"},
		"block size that wraps":  {with(super(), 0x18, uint32(0xffffffff)), whole, "block size"},
		"no blocks":              {with(super(), 0x04, uint32(0)), whole, "0 blocks"},
		"more blocks than exist": {with(with(super(), 0x150, uint32(0xffffffff)), 0x60, uint32(0x80)), whole, "blocks"},
	} {
		t.Run(name, func(t *testing.T) {
			path := image(t, c.super, c.size)
			err := inspect(t, path)
			if c.says == "" {
				must(t, err)
				return
			}
			if !errors.Is(err, ext4.ErrImage) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want %v with %q and the path", err, ext4.ErrImage, c.says)
			}
		})
	}
}

func TestOnlyRegularFilesAreImages(t *testing.T) {
	for _, path := range []string{t.TempDir(), os.DevNull} {
		if err := inspect(t, path); !errors.Is(err, ext4.ErrImage) || !strings.Contains(err.Error(), "regular") {
			t.Errorf("%s: %v, want %v", path, err, ext4.ErrImage)
		}
	}
}

// FuzzSuperblock wants each image refused with the one error, or to be as long
// as its superblock says.
func FuzzSuperblock(f *testing.F) {
	f.Add(super(), uint32(256*4096))
	f.Add(with(super(), 0x18, uint32(0)), uint32(256*1024))
	f.Add(with(with(super(), 0x150, uint32(1)), 0x60, uint32(0x80)), uint32(1<<20))
	f.Add(super()[:512], uint32(1024))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, super []byte, size uint32) {
		path := filepath.Join(dir, "image")
		must(t, os.WriteFile(path, append(make([]byte, 1024), super...), 0o600))
		must(t, os.Truncate(path, int64(size)))
		if err := inspect(t, path); err != nil {
			if !errors.Is(err, ext4.ErrImage) {
				t.Error(err)
			}
			return
		}
		le := binary.LittleEndian
		super = append(super, make([]byte, 1024)...)
		if blocks := uint64(le.Uint32(super[4:])); size%512 != 0 || blocks<<(10+le.Uint32(super[0x18:])) > uint64(size) {
			t.Errorf("%d blocks are taken in a file of %d bytes", blocks, size)
		}
	})
}
