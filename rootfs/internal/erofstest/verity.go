package erofstest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"testing"
)

// VerityBlock is the length of the blocks of data and of hashes, in bytes.
const VerityBlock = 4096

// Protect appends a dm-verity hash tree to the layer at path, which grows, as
// the differ of containerd does, and returns the path of the metadata file that
// it puts beside the layer.
func Protect(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, make([]byte, -len(data)&(VerityBlock-1))...)
	salt := make([]byte, 32)

	// The levels of the tree, that of the data's hashes first. Data of one block
	// have none.
	var levels [][]byte
	level, h := data, sha256.New()
	for len(level) > VerityBlock {
		var hashes []byte
		for block := range slices.Chunk(level, VerityBlock) {
			h.Reset()
			h.Write(salt)
			h.Write(block)
			hashes = h.Sum(hashes)
		}
		level = append(hashes, make([]byte, -len(hashes)&(VerityBlock-1))...)
		levels = append(levels, level)
	}
	root := sha256.Sum256(append(bytes.Clone(salt), level...))

	super := make([]byte, VerityBlock)
	le := binary.LittleEndian
	copy(super, "verity")
	le.PutUint32(super[8:], 1)
	le.PutUint32(super[12:], 1)
	copy(super[16:], "not a random ID.")
	copy(super[32:], "sha256")
	le.PutUint32(super[64:], VerityBlock)
	le.PutUint32(super[68:], VerityBlock)
	le.PutUint64(super[72:], uint64(len(data)/VerityBlock))
	le.PutUint16(super[80:], uint16(len(salt)))
	copy(super[88:], salt)

	out := append(bytes.Clone(data), super...)
	for i := len(levels) - 1; i >= 0; i-- { // on the disk the root comes first
		out = append(out, levels[i]...)
	}
	metadata := path + ".dmverity"
	text := fmt.Sprintf("{\n  \"roothash\": \"%x\",\n  \"hashoffset\": %d\n}", root, len(data))
	if err := os.WriteFile(path, out, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(metadata, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return metadata
}
