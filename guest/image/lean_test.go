package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"
)

// part is a segment of a synthetic kernel.
type part struct {
	kind    elf.ProgType
	at      uint64 // physical; the virtual address is as far above virtual
	content []byte
	more    uint64 // in memory alone
}

const virtual = 0xffffffff80000000

func kernelOf(parts ...part) []byte {
	const header, segment = 64, 56
	var out bytes.Buffer
	write := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) }
	write(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Entry: 0x1000b53,
		Phoff: header, Ehsize: header, Phentsize: segment, Phnum: uint16(len(parts)),
	})
	at := uint64(header + segment*len(parts))
	for _, p := range parts {
		size := uint64(len(p.content))
		write(elf.Prog64{Type: uint32(p.kind), Flags: uint32(elf.PF_R), Off: at, Vaddr: virtual + p.at, Paddr: p.at, Filesz: size, Memsz: size + p.more, Align: 2 << 20})
		at += size
	}
	for _, p := range parts {
		out.Write(p.content)
	}
	return out.Bytes()
}

// inMemory is what is not zero once a loader has copied each segment to its physical
// address, where fresh memory was.
func inMemory(t testing.TB, kernel []byte) map[uint64]byte {
	t.Helper()
	file, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil {
		t.Fatal(err)
	}
	memory := map[uint64]byte{}
	for _, segment := range file.Progs {
		if segment.Type != elf.PT_LOAD {
			continue
		}
		if segment.Vaddr-segment.Paddr != virtual {
			t.Fatalf("a segment at %#x is mapped at %#x", segment.Paddr, segment.Vaddr)
		}
		for i, b := range kernel[segment.Off:][:segment.Filesz] {
			if b != 0 {
				memory[segment.Paddr+uint64(i)] = b
			}
		}
	}
	return memory
}

func wantSameMemory(t testing.TB, got, want []byte) {
	t.Helper()
	is, was := inMemory(t, got), inMemory(t, want)
	for at, b := range was {
		if is[at] != b {
			t.Fatalf("at %#x is %#x and not %#x", at, is[at], b)
		}
	}
	if len(is) != len(was) {
		t.Fatalf("%d bytes are not zero, and were %d", len(is), len(was))
	}
}

// pages are as many pages, of which those that are named have something in them.
func pages(n int, filled ...int) []byte {
	data := make([]byte, n*leanPage)
	for _, i := range filled {
		data[i*leanPage+i] = byte(i + 1)
	}
	return data
}

func TestLeanKernelIsTheSameInMemory(t *testing.T) {
	const text, data = 16 << 20, 32 << 20
	for name, c := range map[string]struct {
		parts []part
		sizes []uint64 // of the segments that come of it, in pages
	}{
		"nothing to leave out":      {[]part{{elf.PT_LOAD, text, pages(3, 0, 1, 2), 0}}, []uint64{3}},
		"a short run stays":         {[]part{{elf.PT_LOAD, text, pages(18, 0, 16, 17), 0}}, []uint64{18}},
		"a long run goes":           {[]part{{elf.PT_LOAD, text, pages(18, 0, 17), 0}}, []uint64{1, 1}},
		"zeros at both ends go":     {[]part{{elf.PT_LOAD, text, pages(40, 20), 0}}, []uint64{1}},
		"what is in memory alone":   {[]part{{elf.PT_LOAD, text, pages(2, 0, 1), 5 * leanPage}}, []uint64{2}},
		"only zeros":                {[]part{{elf.PT_LOAD, data, pages(3), 0}, {elf.PT_LOAD, text, pages(1, 0), 0}}, []uint64{1}},
		"an end amid a page":        {[]part{{elf.PT_LOAD, text, append(pages(1, 0), 1, 2, 3), 0}}, []uint64{2}},
		"two segments, one in many": {[]part{{elf.PT_LOAD, text, pages(60, 0, 30, 59), 0}, {elf.PT_LOAD, data, pages(2, 0), 0}}, []uint64{1, 1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			kernel := kernelOf(append(c.parts, part{elf.PT_NOTE, text, pvhNote(), 0})...)
			got, err := lean(kernel)
			if err != nil {
				t.Fatal(err)
			}
			wantSameMemory(t, got, kernel)
			if err := enterable(got); err != nil {
				t.Error(err)
			}
			file, err := elf.NewFile(bytes.NewReader(got))
			if err != nil {
				t.Fatal(err)
			}
			if file.Entry != 0x1000b53 || file.Machine != elf.EM_X86_64 || file.Type != elf.ET_EXEC {
				t.Errorf("%+v", file.FileHeader)
			}
			var sizes []uint64
			for _, segment := range file.Progs {
				if segment.Type == elf.PT_LOAD {
					sizes = append(sizes, pageUp(segment.Filesz)/leanPage)
				}
				if segment.Memsz != segment.Filesz || segment.Off%leanPage != 0 {
					t.Errorf("%+v", segment.ProgHeader)
				}
			}
			if len(sizes) != len(c.sizes) {
				t.Fatalf("segments of %d pages, want %d", sizes, c.sizes)
			}
			for i := range sizes {
				if sizes[i] != c.sizes[i] {
					t.Fatalf("segments of %d pages, want %d", sizes, c.sizes)
				}
			}
		})
	}
}

func TestLeanRefusesWhatNoKernelIs(t *testing.T) {
	cut := kernelOf(part{elf.PT_LOAD, 1 << 20, pages(2, 1), 0})
	twice := kernelOf(part{elf.PT_LOAD, 1 << 20, pages(2, 1), 0}, part{elf.PT_LOAD, 2 << 20, nil, 0})
	copy(twice[64+56:][:56], twice[64:][:56])
	for says, kernel := range map[string][]byte{
		"outside its file": cut[:len(cut)-1],
		"share parts":      twice,
		"not ELF":          []byte("a kernel"),
	} {
		if _, err := lean(kernel); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want an error that says %q", err, says)
		}
	}
}

func FuzzLean(f *testing.F) {
	f.Add(kernelOf(part{elf.PT_LOAD, 1 << 20, []byte("code"), 4096}, part{elf.PT_NOTE, 1 << 20, pvhNote(), 0}))
	f.Add(minimalELF(elf.PT_NOTE, pvhNote()))
	f.Fuzz(func(t *testing.T, kernel []byte) {
		got, err := lean(kernel)
		if err != nil {
			return
		}
		if enterable(kernel) == nil && enterable(got) != nil {
			t.Errorf("it could be entered: %v", enterable(got))
		}
		again, err := lean(got)
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("once more: %v", err)
		}
	})
}
