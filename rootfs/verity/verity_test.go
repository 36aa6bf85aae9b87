package verity_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/verity"
)

func put(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layer.erofs")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func get(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// protected is a layer of the given length with its tree: the bytes of the file,
// and the path of the metadata.
func protected(t testing.TB, length int) (layer []byte, metadata string) {
	t.Helper()
	path := put(t, bytes.Repeat([]byte{7}, length))
	metadata = erofstest.Protect(t, path)
	return get(t, path), metadata
}

func TestATreeThatCoversItsLayerIsTaken(t *testing.T) {
	const block = erofstest.VerityBlock
	for _, length := range []int{block, block + 512, 128 * block, 129 * block, 128*128*block + 1} {
		layer, metadata := protected(t, length)
		tree, err := verity.Read(metadata, bytes.NewReader(layer), int64(len(layer)), int64(length))
		if err != nil {
			t.Errorf("%d bytes: %v", length, err)
			continue
		}
		if want := int64(length+block-1) / block * block; tree.HashOffset != want || len(tree.RootHash) != 64 {
			t.Errorf("%d bytes: %+v, want the tree at %d", length, tree, want)
		}
		// The last block of the tree is the last of the file.
		if _, err := verity.Read(metadata, bytes.NewReader(layer), int64(len(layer))-block, int64(length)); !errors.Is(err, verity.ErrTree) {
			t.Errorf("%d bytes, a block short: %v, want %v", length, err, verity.ErrTree)
		}
	}
}

// TestTheTreesOfTheseTestsAreThoseOfCryptsetup is skipped where there is no
// veritysetup.
func TestTheTreesOfTheseTestsAreThoseOfCryptsetup(t *testing.T) {
	veritysetup, err := exec.LookPath("veritysetup")
	if err != nil {
		t.Skip(err)
	}
	path := put(t, bytes.Repeat([]byte("layer"), 200000))
	tree, err := verity.ReadMetadata(erofstest.Protect(t, path))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(veritysetup, "verify", "--hash-offset", strconv.FormatInt(tree.HashOffset, 10), path, path, tree.RootHash)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", cmd, err, out)
	}
}

func TestATreeThatDoesNotProtectIsRefused(t *testing.T) {
	const length = 3 * erofstest.VerityBlock
	super := func(at int, value any) func([]byte) []byte {
		return func(layer []byte) []byte {
			if _, err := binary.Encode(layer[length+at:], binary.LittleEndian, value); err != nil {
				t.Fatal(err)
			}
			return layer
		}
	}
	for name, c := range map[string]struct {
		change  func([]byte) []byte
		covered int64
		says    string
	}{
		"no superblock":        {super(0, uint8('V')), length, "no superblock"},
		"version":              {super(8, uint32(2)), length, "version 1"},
		"hash type":            {super(12, uint32(0)), length, "hash type 1"},
		"weak algorithm":       {super(32, [32]byte{'m', 'd', '5'}), length, "md5"},
		"other algorithm":      {super(32, [32]byte{'s', 'h', 'a', '5', '1', '2'}), length, "128"},
		"data block":           {super(64, uint32(4095)), length, "4095"},
		"no data block":        {super(64, uint32(0)), length, "0 and 4096"},
		"hash block":           {super(68, uint32(1<<20)), length, "1048576"},
		"hash block too large": {super(68, uint32(65536)), length, "multiple"},
		"no block":             {super(72, uint64(0)), length, "0 blocks"},
		"blocks into the tree": {super(72, uint64(4)), length, "4 blocks"},
		"huge blocks":          {super(72, uint64(1<<63)), length, "9223372036854775808 blocks"},
		"a block unprotected":  {super(72, uint64(2)), length, "protects 8192 bytes"},
		"layer longer":         {super(72, uint64(3)), length + 1, "the layer has 12289"},
		"salt":                 {super(80, uint16(257)), length, "257"},
		"cut":                  {func(l []byte) []byte { return l[:len(l)-512] }, length, "it ends at"},
		"all of the tree gone": {func(l []byte) []byte { return l[:length] }, length, "the layer has 12288 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			layer, metadata := protected(t, length)
			layer = c.change(layer)
			tree, err := verity.Read(metadata, bytes.NewReader(layer), int64(len(layer)), c.covered)
			if !errors.Is(err, verity.ErrTree) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), metadata) {
				t.Errorf("%+v, %v, want %v with %q and the path", tree, err, verity.ErrTree, c.says)
			}
		})
	}
}

func TestMetadataThatIsNoneIsRefused(t *testing.T) {
	root := strings.Repeat("0a", 32)
	for name, text := range map[string]string{
		"nothing":         "",
		"not JSON":        "roothash",
		"behind it":       fmt.Sprintf(`{"roothash":%q,"hashoffset":4096} {}`, root),
		"no hash":         `{"hashoffset":4096}`,
		"short hash":      fmt.Sprintf(`{"roothash":%q,"hashoffset":4096}`, root[2:]),
		"not hexadecimal": fmt.Sprintf(`{"roothash":%q,"hashoffset":4096}`, "xx"+root[2:]),
		"option in disguise": fmt.Sprintf(`{"roothash":%q,"hashoffset":4096}`,
			root[:40]+",X-kata.overlay-upper=true"),
		"no offset":         fmt.Sprintf(`{"roothash":%q}`, root),
		"negative offset":   fmt.Sprintf(`{"roothash":%q,"hashoffset":-4096}`, root),
		"offset not whole":  fmt.Sprintf(`{"roothash":%q,"hashoffset":4096.5}`, root),
		"offset in between": fmt.Sprintf(`{"roothash":%q,"hashoffset":4097}`, root),
		"offset of 2^63":    fmt.Sprintf(`{"roothash":%q,"hashoffset":9223372036854775808}`, root),
		"long":              strings.Repeat(" ", 1<<20) + fmt.Sprintf(`{"roothash":%q,"hashoffset":4096}`, root),
	} {
		t.Run(name, func(t *testing.T) {
			path := put(t, []byte(text))
			tree, err := verity.ReadMetadata(path)
			if !errors.Is(err, verity.ErrMetadata) || !strings.Contains(err.Error(), path) || len(err.Error()) > 1000 {
				t.Errorf("%+v, %v, want %v", tree, err, verity.ErrMetadata)
			}
		})
	}
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{dir: verity.ErrMetadata, fifo: verity.ErrMetadata, filepath.Join(dir, "none"): os.ErrNotExist} {
		if _, err := verity.ReadMetadata(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

// FuzzRead wants every pair of metadata and superblock refused, or a tree that
// lies within its file and behind what it protects.
func FuzzRead(f *testing.F) {
	const length = 2 * erofstest.VerityBlock
	layer, metadata := protected(f, length)
	f.Add(get(f, metadata), layer[length:][:512], int64(len(layer)))
	f.Add([]byte(`{"roothash":"`+strings.Repeat("0a", 64)+`","hashoffset":512}`), layer[length:][:512], int64(1<<40))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, metadata, super []byte, size int64) {
		path := filepath.Join(dir, strconv.Itoa(os.Getpid()))
		if err := os.WriteFile(path, metadata, 0o600); err != nil {
			t.Fatal(err)
		}
		tree, err := verity.Read(path, always(super), size, length)
		if err != nil {
			return
		}
		if tree.HashOffset < length || tree.HashOffset+512 > size || strings.Trim(tree.RootHash, "0123456789abcdef") != "" {
			t.Errorf("%+v of a layer of %d bytes", tree, size)
		}
	})
}

// always is a file with the same bytes at every place.
type always []byte

func (a always) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	copy(p, a)
	return len(p), nil
}
