package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

func TestKernelComesOutOfEveryFormat(t *testing.T) {
	vmlinux := minimalELF(elf.PT_NOTE, pvhNote())
	for name, compressor := range compressors {
		t.Run(name, func(t *testing.T) {
			got, err := extractKernel(bzImage(t, compressor, vmlinux))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, vmlinux) {
				t.Errorf("%d bytes came out, %d went in", len(got), len(vmlinux))
			}
		})
	}
}

func TestBadKernelsAreRefused(t *testing.T) {
	good := func() []byte { return bzImage(t, compressors["zstd"], minimalELF(elf.PT_NOTE, pvhNote())) }
	put32 := func(at int, v uint32) []byte {
		image := good()
		binary.LittleEndian.PutUint32(image[at:], v)
		return image
	}
	for _, c := range []struct {
		name  string
		image []byte
		says  string
	}{
		{"empty", nil, "not a bzImage"},
		{"no magic", make([]byte, 4096), "not a bzImage"},
		{"old protocol", func() []byte { i := good(); i[bzVersion] = 7; return i }(), "older"},
		{"payload beyond the end", put32(bzPayloadOffset, 1<<31), "outside"},
		{"length that wraps", put32(bzPayloadLength, 0xffffffff), "outside"},
		{"payload too short", put32(bzPayloadLength, 3), "outside"},
		{"cut off", good()[:1600], "outside"},
		{"not compressed and not ELF", put32(bzPayloadOffset, 0), "not ELF"},
		{"not ELF inside", bzImage(t, compressors["zstd"], []byte("not a kernel at all")), "not ELF"},
		{"note of another type", bzImage(t, compressors["xz"], minimalELF(elf.PT_NOTE, pvhNote()[:20])), "PVH"},
		{"note of a huge size", bzImage(t, compressors["xz"], minimalELF(elf.PT_NOTE, bytes.Repeat([]byte{0xff}, 12))), "PVH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := extractKernel(c.image)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
		})
	}
}

func TestDecompressionIsBounded(t *testing.T) {
	bomb := make([]byte, 1<<20)
	for name, compressor := range compressors {
		t.Run(name, func(t *testing.T) {
			packed := compress(t, compressor, bomb)
			if _, err := decompress(packed, int64(len(bomb))-1, false); !errors.Is(err, errTooLarge) {
				t.Errorf("one byte over the limit: %v", err)
			}
			if plain, err := decompress(packed, int64(len(bomb)), false); err != nil || len(plain) != len(bomb) {
				t.Errorf("at the limit: %d bytes, %v", len(plain), err)
			}
			for _, length := range []int{13, 20, len(packed) / 2, len(packed) - 1} {
				if plain, err := decompress(packed[:length], maxKernel, false); err == nil && len(plain) == len(bomb) {
					t.Errorf("the first %d of %d bytes were taken for all", length, len(packed))
				}
			}
			if compressor.ownSize {
				return
			}
			for _, lie := range []uint32{uint32(len(bomb)) - 1, uint32(len(bomb)) + 1} {
				if _, err := decompress(binary.LittleEndian.AppendUint32(packed[:len(packed):len(packed)], lie), maxKernel, true); err == nil {
					t.Errorf("a size of %d was believed", lie)
				}
			}
		})
	}
}

func FuzzExtractKernel(f *testing.F) {
	for _, compressor := range compressors {
		f.Add(bzImage(f, compressor, minimalELF(elf.PT_NOTE, pvhNote())))
	}
	f.Add([]byte("HdrS"))
	f.Fuzz(func(t *testing.T, image []byte) {
		vmlinux, err := extractKernel(image)
		if err == nil && !bytes.HasPrefix(vmlinux, []byte(elf.ELFMAG)) {
			t.Errorf("%d bytes that are not ELF", len(vmlinux))
		}
	})
}
