package erofs_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
)

var layerUUID = uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff")

// device is a slot of a device table, to be written.
type device struct {
	tag           string
	blocks, start uint32
	high          uint64
}

// image makes an image of the given number of 4 KiB blocks that has just what
// this package reads, with the device table behind the superblock.
func image(blocks uint32, devices ...device) []byte {
	le := binary.LittleEndian
	raw := make([]byte, int(blocks)*4096)
	sb := raw[1024:]
	le.PutUint32(sb[0:], 0xE0F5E1E2)
	sb[12] = 12
	le.PutUint32(sb[36:], blocks)
	copy(sb[48:], layerUUID[:])
	if len(devices) > 0 {
		le.PutUint32(sb[80:], 8)
		le.PutUint16(sb[86:], uint16(len(devices)))
		le.PutUint16(sb[88:], 9)
		for i, d := range devices {
			slot := raw[1152+128*i:]
			copy(slot, d.tag)
			le.PutUint32(slot[64:], d.blocks)
			le.PutUint32(slot[68:], d.start)
			le.PutUint64(slot[72:], d.high)
		}
	}
	return raw
}

// change is a copy of raw with a value at an offset of the superblock.
func change(raw []byte, offset int, value any) []byte {
	out := bytes.Clone(raw)
	if _, err := binary.Encode(out[1024+offset:], binary.LittleEndian, value); err != nil {
		panic(err)
	}
	return out
}

func file(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// inspect opens the file at path until the test ends and looks at it.
func inspect(t testing.TB, path string) (*erofs.Image, error) {
	t.Helper()
	f, err := files.Open(path, files.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return erofs.Inspect(f)
}

func TestSuperblockAndDeviceTableAreRead(t *testing.T) {
	tag := strings.Repeat("t", 64) // no room for a zero byte
	got, err := inspect(t, file(t, image(3, device{tag: tag, blocks: 7, start: 3}, device{tag: "two", blocks: 0xff, start: 10})))
	if err != nil {
		t.Fatal(err)
	}
	sb := got.Super
	if sb.BlockSize != 4096 || sb.Blocks != 3 || sb.Bytes() != 12288 || sb.UUID != layerUUID || sb.Features != 8 {
		t.Errorf("superblock is %+v", sb)
	}
	want := []erofs.Device{{Tag: tag, Blocks: 7, Start: 3}, {Tag: "two", Blocks: 0xff, Start: 10}}
	if len(sb.Devices) != 2 || sb.Devices[0] != want[0] || sb.Devices[1] != want[1] {
		t.Errorf("devices are %+v, want %+v", sb.Devices, want)
	}
}

func TestHighBlocksCountOnlyWithTheirFeature(t *testing.T) {
	// Without the feature, the two bytes are the root's number.
	if got, err := inspect(t, file(t, change(image(1), 14, uint16(1)))); err != nil || got.Super.Blocks != 1 {
		t.Errorf("%+v, %v, want 1 block", got, err)
	}
	_, err := inspect(t, file(t, change(change(image(1), 14, uint16(1)), 80, uint32(0x80))))
	if !errors.Is(err, erofs.ErrCorrupt) {
		t.Errorf("%v, want 2^32+1 blocks to be refused", err)
	}
}

func TestBadImagesAreToldApart(t *testing.T) {
	good := image(2)
	table := image(2, device{tag: "a", blocks: 1, start: 2})
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"empty":                  {nil, erofs.ErrEmpty},
		"one sector":             {good[:512], erofs.ErrNotEROFS},
		"a byte short":           {good[:8191], erofs.ErrTruncated},
		"zeros":                  {make([]byte, 8192), erofs.ErrNotEROFS},
		"a sector short":         {good[:8192-512], erofs.ErrTruncated},
		"only the superblock":    {good[:1536], erofs.ErrTruncated},
		"blocks of a byte":       {change(good, 12, uint8(0)), erofs.ErrCorrupt},
		"blocks of 2^255":        {change(good, 12, uint8(255)), erofs.ErrCorrupt},
		"no block":               {change(good, 36, uint32(0)), erofs.ErrCorrupt},
		"2^32-1 blocks":          {change(good, 36, uint32(0xffffffff)), erofs.ErrCorrupt},
		"ends in its superblock": {change(change(good, 12, uint8(9)), 36, uint32(2)), erofs.ErrCorrupt},
		"unknown feature":        {change(good, 80, uint32(0x200)), erofs.ErrUnsupported},
		"table in superblock":    {change(table, 88, uint16(8)), erofs.ErrCorrupt},
		"table behind the end":   {change(table, 88, uint16(0xffff)), erofs.ErrCorrupt},
		"table over the end":     {change(table, 86, uint16(100)), erofs.ErrCorrupt},
		"65,535 devices":         {change(table, 86, uint16(0xffff)), erofs.ErrUnsupported},
		"a huge device":          {image(2, device{tag: "a", blocks: 0xffffffff, start: 2}), erofs.ErrCorrupt},
		"a device of 48 bits":    {image(2, device{tag: "a", blocks: 1, start: 2, high: 1}), erofs.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, c.data)
			got, err := inspect(t, path)
			if !errors.Is(err, c.want) {
				t.Fatalf("%+v, %v, want %v", got, err, c.want)
			}
			if !strings.Contains(err.Error(), path) {
				t.Errorf("%v does not name %s", err, path)
			}
		})
	}
}

func TestOnlyRegularFilesAreRead(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, fifo, os.DevNull} {
		if _, err := inspect(t, path); !errors.Is(err, erofs.ErrNotRegular) {
			t.Errorf("%s: %v, want %v", path, err, erofs.ErrNotRegular)
		}
	}
}

func TestAReplacedFileHasAnotherIdentity(t *testing.T) {
	path := file(t, image(1))
	before, err := inspect(t, path)
	if err != nil {
		t.Fatal(err)
	}
	aside := file(t, image(1))
	if err := os.Rename(aside, path); err != nil {
		t.Fatal(err)
	}
	after, err := inspect(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if before.Inode == after.Inode && before.ModTime.Equal(after.ModTime) {
		t.Errorf("%+v before and after", before)
	}
}

func TestDeviceTableMustDescribeItsImages(t *testing.T) {
	tag := hex.EncodeToString(layerUUID[:])
	layer, err := inspect(t, file(t, image(5)))
	if err != nil {
		t.Fatal(err)
	}
	small := *layer
	super := *layer.Super
	super.BlockSize = 512
	small.Super = &super
	nested, err := inspect(t, file(t, image(5, device{tag: "x", blocks: 1, start: 5})))
	if err != nil {
		t.Fatal(err)
	}
	right := []device{{tag: tag, blocks: 5, start: 2}, {tag: tag, blocks: 5, start: 7}}
	for name, c := range map[string]struct {
		table  []device
		images []*erofs.Image
		want   string // "" if it is right
	}{
		"right":           {right, []*erofs.Image{layer, layer}, ""},
		"image missing":   {right, []*erofs.Image{layer}, "2 devices, 1 are given"},
		"image too many":  {right, []*erofs.Image{layer, layer, layer}, "3 are given"},
		"other tag":       {[]device{{tag: "sha256:x", blocks: 5, start: 2}}, []*erofs.Image{layer}, "order"},
		"other blocks":    {[]device{{tag: tag, blocks: 4, start: 2}}, []*erofs.Image{layer}, "4 blocks"},
		"gap":             {[]device{{tag: tag, blocks: 5, start: 3}}, []*erofs.Image{layer}, "starts at block 3"},
		"overlap":         {[]device{{tag: tag, blocks: 5, start: 2}, {tag: tag, blocks: 5, start: 2}}, []*erofs.Image{layer, layer}, "end at 7"},
		"other blocksize": {[]device{{tag: tag, blocks: 5, start: 2}}, []*erofs.Image{&small}, "512"},
		"nested":          {[]device{{tag: tag, blocks: 5, start: 2}}, []*erofs.Image{nested}, "of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			meta, err := inspect(t, file(t, image(2, c.table...)))
			if err != nil {
				t.Fatal(err)
			}
			err = erofs.CheckDevices(meta, c.images)
			if c.want == "" && err != nil {
				t.Error(err)
			}
			if c.want != "" && (!errors.Is(err, erofs.ErrMismatch) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want a mismatch with %q", err, c.want)
			}
		})
	}
}

// TestRealImages compares with what mkfs.erofs itself has written.
func TestRealImages(t *testing.T) {
	dir := t.TempDir()
	body := strings.Repeat("0123456789abcdef", 5000)
	var paths []string
	var layers []*erofs.Image
	for _, name := range []string{"a", "b"} {
		path := erofstest.Layer(t, dir, name, []erofstest.Entry{erofstest.File(name, body)}, "-U", layerUUID.String())
		layer, err := inspect(t, path)
		if err != nil {
			t.Fatal(err)
		}
		if layer.Super.UUID != layerUUID || layer.Super.BlockSize != 4096 || layer.Super.Bytes() != layer.Size || layer.Super.Devices != nil {
			t.Errorf("%s: %+v of %d bytes", name, layer.Super, layer.Size)
		}
		layers, paths = append(layers, layer), append(paths, path)
	}
	merged := filepath.Join(dir, "merged")
	args := append([]string{"--quiet", "--aufs", "--ovlfs-strip=1", merged}, paths...)
	if out, err := exec.Command(erofstest.Mkfs(t), args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	meta, err := inspect(t, merged)
	if err != nil {
		t.Fatal(err)
	}
	if err := erofs.CheckDevices(meta, layers); err != nil {
		t.Error(err)
	}
}

// FuzzReadSuperblock wants an error or values that are in bounds, whatever the
// image holds from its superblock on.
func FuzzReadSuperblock(f *testing.F) {
	for _, seed := range [][]byte{
		image(1), image(2, device{tag: "a", blocks: 1, start: 2}), change(image(1), 80, uint32(0x80)),
		image(1, device{tag: "a", blocks: 1, start: 1}, device{tag: "b", blocks: 1, start: 2}),
	} {
		f.Add(seed[1024:1024+512], int64(len(seed)))
	}
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		// As in a file, there are zeros or nothing behind the data.
		file := io.NewSectionReader(bytes.NewReader(append(make([]byte, 1024), data...)), 0, size)
		sb, err := erofs.ReadSuperblock(file, size)
		if err != nil {
			return
		}
		if sb.Blocks <= 0 || sb.BlockSize < 512 || sb.Bytes() > size {
			t.Errorf("%+v of %d bytes", sb, size)
		}
		for _, d := range sb.Devices {
			if d.Blocks < 0 || d.Start < 0 || len(d.Tag) > 64 {
				t.Errorf("device %+v", d)
			}
		}
	})
}
