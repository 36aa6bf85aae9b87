package verity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// super is what the fields of a superblock are, see cryptsetup's wiki page
// DMVerity.
type super struct {
	magic                string
	version, kind        uint32
	algorithm            string
	dataBlock, hashBlock uint32
	blocks               uint64
	salt                 []byte
	saltLen              uint16
}

// good is the superblock of a layer of two blocks of data.
func good() super {
	return super{magic: superMagic, version: 1, kind: 1, algorithm: "sha256", dataBlock: 4096, hashBlock: 4096, blocks: 2, salt: []byte{0xab, 0xcd}, saltLen: 2}
}

func (s super) bytes() []byte {
	raw := make([]byte, superSize)
	copy(raw, s.magic)
	le := binary.LittleEndian
	le.PutUint32(raw[8:], s.version)
	le.PutUint32(raw[12:], s.kind)
	copy(raw[16:], "any UUID at all.")
	copy(raw[32:64], s.algorithm)
	le.PutUint32(raw[64:], s.dataBlock)
	le.PutUint32(raw[68:], s.hashBlock)
	le.PutUint64(raw[72:], s.blocks)
	le.PutUint16(raw[80:], s.saltLen)
	copy(raw[88:], s.salt)
	return raw
}

// at is a layer that has the superblock at offset.
func at(offset int, raw []byte) io.ReaderAt {
	return bytes.NewReader(append(make([]byte, offset), raw...))
}

func TestTargetLineIsThatOfTheSuperblock(t *testing.T) {
	var lines strings.Builder
	for _, c := range []struct {
		name   string
		offset int
		change func(*super)
		root   string
	}{
		{"salted", 8192, func(*super) {}, strings.Repeat("12", 32)},
		{"no salt", 8192, func(s *super) { s.salt, s.saltLen = nil, 0 }, strings.Repeat("12", 32)},
		{"the longest", 1 << 20, func(s *super) {
			s.algorithm, s.salt, s.saltLen, s.blocks = "sha512", bytes.Repeat([]byte{0xff}, maxSalt), maxSalt, 256
		}, strings.Repeat("f", 128)},
		{"blocks of one sector", 1024, func(s *super) { s.dataBlock, s.hashBlock, s.blocks = 512, 512, 2 }, strings.Repeat("12", 32)},
		{"large hash blocks", 65536, func(s *super) { s.hashBlock, s.blocks = 65536, 16 }, strings.Repeat("12", 32)},
		{"a gap before it", 1 << 20, func(s *super) { s.blocks = 1 }, strings.Repeat("12", 32)},
	} {
		s := good()
		c.change(&s)
		tree, err := readTree(at(c.offset, s.bytes()), uint64(c.offset), len(c.root)/2)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		fmt.Fprintf(&lines, "%s:\n  0 %d verity %s\n", c.name, tree.sectors(), tree.target("254:16", c.root))
	}
	golden(t, "target.golden", lines.String())
}

// golden compares with a file of testdata, which UPDATE_GOLDEN=1 writes.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
	}
}

func TestSuperblockThatCannotBeIsRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*super)
		root   int
		says   string
	}{
		{"another magic", func(s *super) { s.magic = "verity\x00x" }, 32, "there is none"},
		{"version 2", func(s *super) { s.version = 2 }, 32, "version 1"},
		{"the hash type of Chrome OS", func(s *super) { s.kind = 0 }, 32, "hash type 1"},
		{"a weak hash", func(s *super) { s.algorithm = "md5" }, 16, `"md5"`},
		{"a hash that is an option", func(s *super) { s.algorithm = "sha256 1 - 9" }, 32, "sha256 and sha512"},
		{"the root of another hash", func(s *super) { s.algorithm = "sha512" }, 32, "32 bytes"},
		{"blocks of no bytes", func(s *super) { s.dataBlock = 0 }, 32, "blocks of 0 bytes"},
		{"blocks of three sectors", func(s *super) { s.dataBlock = 1536 }, 32, "powers of two"},
		{"blocks above a page", func(s *super) { s.dataBlock = 8192 }, 32, "512 to 4096"},
		{"hash blocks of no bytes", func(s *super) { s.hashBlock = 0 }, 32, "hash blocks of 0"},
		{"huge hash blocks", func(s *super) { s.hashBlock = 1 << 31 }, 32, "65536"},
		{"an offset between hash blocks", func(s *super) { s.hashBlock = 16384 }, 32, "multiple"},
		{"a salt beyond its room", func(s *super) { s.saltLen = maxSalt + 1 }, 32, "salt of 257"},
		{"nothing to protect", func(s *super) { s.blocks = 0 }, 32, "0 blocks"},
		{"more than is in front of it", func(s *super) { s.blocks = 3 }, 32, "3 blocks"},
		{"so much that it overflows", func(s *super) { s.blocks = 1<<52 + 1 }, 32, "do not fit"},
	} {
		s := good()
		c.change(&s)
		_, err := readTree(at(8192, s.bytes()), 8192, c.root)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "superblock at 8192") {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}

// The end of a layer must not be taken for that of a stream, which io.EOF is on
// the wire.
func TestLayerThatEndsBeforeItsSuperblockIsInvalid(t *testing.T) {
	for _, offset := range []uint64{8192 + superSize/2, 1 << 40, 1<<63 - 1} {
		_, err := readTree(at(8192, good().bytes()), offset, 32)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || errors.Is(err, io.EOF) {
			t.Errorf("at %d: %v", offset, err)
		}
	}
}

// FuzzSuperblock holds what comes from a layer to what the kernel and the sums
// here need: a device that ends before the tree, which lies behind the
// superblock, and a line of ten words.
func FuzzSuperblock(f *testing.F) {
	f.Add(uint64(8192), good().bytes())
	long := good()
	long.algorithm, long.salt, long.saltLen = "sha512", bytes.Repeat([]byte{1}, maxSalt), maxSalt
	f.Add(uint64(8192), long.bytes())
	f.Fuzz(func(t *testing.T, offset uint64, raw []byte) {
		if offset >= 1<<63 {
			return
		}
		for _, length := range []int{32, 64} {
			tree, err := readTree(io.NewSectionReader(everywhere(raw), 0, 1<<63-1), offset, length)
			if err != nil {
				continue
			}
			if tree.sectors() == 0 || tree.sectors() > offset/512 {
				t.Errorf("%d sectors, the superblock is at %d", tree.sectors(), offset)
			}
			if begin := tree.start * tree.hashBlock; begin < offset+superSize || begin > offset+65536 {
				t.Errorf("the tree begins at %d, the superblock at %d", begin, offset)
			}
			line := tree.target("254:0", strings.Repeat("0", 2*length))
			if len(strings.Fields(line)) != 10 || len(line) > 1000 || strings.ContainsAny(line, "\n\x00") {
				t.Errorf("line %q", line)
			}
		}
	})
}

// everywhere is a layer that has the same bytes wherever it is read.
type everywhere []byte

func (e everywhere) ReadAt(p []byte, _ int64) (int, error) {
	if copy(p, e) < len(p) {
		return 0, io.EOF
	}
	return len(p), nil
}
