package erofs_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/google/uuid"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/files"
)

// TestTheRootsModeIsFoundOrNotSaid has the root's inode where each kind of
// superblock says, and where there is none.
func TestTheRootsModeIsFoundOrNotSaid(t *testing.T) {
	const wide = uint32(0x80)                                  // the 48 bits of block addresses
	raw := change(image(2), 4096-1024+32*5+4, uint16(0o40751)) // inode 5 of block 1
	there := change(raw, 40, uint32(1))
	for name, c := range map[string]struct {
		image []byte
		mode  uint16
		ok    bool
	}{
		"empty layer":       {erofs.Empty(), 0o40755, true},
		"number":            {change(there, 14, uint16(5)), 0o40751, true},
		"wide number":       {change(change(there, 80, wide), 112, uint64(5)), 0o40751, true},
		"behind the end":    {change(change(raw, 40, uint32(2)), 14, uint16(5)), 0, false},
		"nothing but zeros": {change(change(raw, 40, uint32(1)), 14, uint16(127)), 0, true},
		"far behind":        {change(raw, 40, ^uint32(0)), 0, false},
		"number in METABOX": {change(change(there, 80, wide), 112, uint64(1<<63|5)), 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := inspect(t, file(t, c.image))
			if err != nil {
				t.Fatal(err)
			}
			if mode, ok := got.RootMode(); mode != c.mode || ok != c.ok {
				t.Errorf("%#o, %v, want %#o, %v", mode, ok, c.mode, c.ok)
			}
		})
	}
}

// FuzzCheckDevices wants a table taken only if it describes the two images
// exactly, one behind the other.
func FuzzCheckDevices(f *testing.F) {
	ids := []uuid.UUID{layerUUID, uuid.MustParse("00112233-4455-4677-8899-aabbccddeeff")}
	tags := []string{hex.EncodeToString(ids[0][:]), hex.EncodeToString(ids[1][:])}
	f.Add(uint8(2), tags[0], uint32(5), uint32(2), tags[1], uint32(1), uint32(7))
	f.Add(uint8(2), tags[1], uint32(1), uint32(2), tags[0], uint32(5), uint32(3))
	f.Add(uint8(1), tags[0], uint32(5), uint32(1), tags[1], ^uint32(0), uint32(6))
	layers := make([]*erofs.Image, 2)
	for i, blocks := range []uint32{5, 1} {
		layer, err := inspect(f, file(f, change(image(blocks), 48, ids[i])))
		if err != nil {
			f.Fatal(err)
		}
		layers[i] = layer
	}
	f.Fuzz(func(t *testing.T, blocks uint8, tag1 string, blocks1, start1 uint32, tag2 string, blocks2, start2 uint32) {
		raw := image(1+uint32(blocks%4), device{tag: tag1, blocks: blocks1, start: start1}, device{tag: tag2, blocks: blocks2, start: start2})
		super, err := erofs.ReadSuperblock(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		meta := &erofs.Image{File: &files.File{Path: "meta"}, Super: super}
		if erofs.CheckDevices(meta, layers) != nil {
			return
		}
		own := 1 + uint32(blocks%4)
		for i, d := range meta.Super.Devices {
			want := erofs.Device{Tag: tags[i], Blocks: []int64{5, 1}[i], Start: int64(own + []uint32{0, 5}[i])}
			if d != want {
				t.Errorf("device %d is %+v, want %+v", i, d, want)
			}
		}
	})
}
