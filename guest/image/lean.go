package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

const (
	// leanPage is the granularity in which zeros are left out: that in which memory
	// is given to a guest.
	leanPage = 4096
	// leanRun is how many pages of zeros are worth a segment more.
	leanRun = 16
)

// lean returns a kernel that QEMU can enter without what is zero in it, in which its
// .bss and the padding between its sections are. QEMU copies each segment, and writes
// zeros for what a segment has in memory alone (hw/core/loader.c, rom_reset); every page
// of that is a page fault on the host, and memory of the guest that it may never touch
// itself. The memory of a guest that boots is zero anyway.
//
// Section headers go too. What the notes say, the entry included, stays.
func lean(vmlinux []byte) ([]byte, error) {
	file, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return nil, fmt.Errorf("the uncompressed kernel is not ELF: %w", err)
	}
	if file.Class != elf.ELFCLASS64 || file.ByteOrder != binary.LittleEndian {
		return nil, fmt.Errorf("the uncompressed kernel is %s, %s", file.Class, file.Data)
	}
	var pieces []elf.ProgHeader // with offsets into vmlinux
	size, loaded := uint64(len(vmlinux)), uint64(0)
	for _, segment := range file.Progs {
		if segment.Off > size || segment.Filesz > size-segment.Off {
			return nil, fmt.Errorf("a segment of the kernel, [%#x, +%#x), is outside its file of %d bytes", segment.Off, segment.Filesz, size)
		}
		switch segment.Type {
		case elf.PT_LOAD:
			if loaded += segment.Filesz; loaded > size {
				return nil, errors.New("the segments of the kernel share parts of its file")
			}
			pieces = append(pieces, withoutZeros(segment.ProgHeader, vmlinux)...)
		case elf.PT_NOTE:
			pieces = append(pieces, segment.ProgHeader)
		}
	}
	if len(pieces) > math.MaxUint16 {
		return nil, fmt.Errorf("the kernel would have %d segments", len(pieces))
	}
	return assemble(file.FileHeader, pieces, vmlinux), nil
}

// withoutZeros cuts a segment at its long runs of zero pages.
func withoutZeros(segment elf.ProgHeader, vmlinux []byte) []elf.ProgHeader {
	data := vmlinux[segment.Off:][:segment.Filesz]
	var pieces []elf.ProgHeader
	keep := func(from, to int) {
		piece := segment
		piece.Off += uint64(from)
		piece.Vaddr += uint64(from)
		piece.Paddr += uint64(from)
		piece.Filesz = uint64(to - from)
		piece.Memsz = piece.Filesz
		pieces = append(pieces, piece)
	}
	var zeros [leanPage]byte
	const none = -1
	begin, end := none, none // of the piece that is being found
	for at := 0; at < len(data); at += leanPage {
		next := min(at+leanPage, len(data))
		if bytes.Equal(data[at:next], zeros[:next-at]) {
			continue
		}
		if begin != none && at-end >= leanRun*leanPage {
			keep(begin, end)
			begin = none
		}
		if begin == none {
			begin = at
		}
		end = next
	}
	if begin != none {
		keep(begin, end)
	}
	return pieces
}

// assemble writes an ELF file of these pieces of another.
func assemble(header elf.FileHeader, pieces []elf.ProgHeader, from []byte) []byte {
	headerSize, pieceSize := binary.Size(elf.Header64{}), binary.Size(elf.Prog64{})
	var out bytes.Buffer
	write := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) } // to a buffer, of fixed size
	ident := [elf.EI_NIDENT]byte{elf.EI_CLASS: byte(header.Class), elf.EI_DATA: byte(header.Data), elf.EI_VERSION: byte(header.Version), elf.EI_OSABI: byte(header.OSABI), elf.EI_ABIVERSION: header.ABIVersion}
	copy(ident[:], elf.ELFMAG)
	write(elf.Header64{
		Ident: ident, Type: uint16(header.Type), Machine: uint16(header.Machine), Version: uint32(header.Version), Entry: header.Entry,
		Phoff: uint64(headerSize), Ehsize: uint16(headerSize), Phentsize: uint16(pieceSize), Phnum: uint16(len(pieces)),
	})
	at := pageUp(uint64(headerSize + len(pieces)*pieceSize))
	for _, p := range pieces {
		write(elf.Prog64{
			Type: uint32(p.Type), Flags: uint32(p.Flags), Off: at,
			Vaddr: p.Vaddr, Paddr: p.Paddr, Filesz: p.Filesz, Memsz: p.Memsz, Align: min(p.Align, leanPage),
		})
		at = pageUp(at + p.Filesz)
	}
	for _, p := range pieces {
		out.Write(make([]byte, pageUp(uint64(out.Len()))-uint64(out.Len())))
		out.Write(from[p.Off:][:p.Filesz])
	}
	return out.Bytes()
}

func pageUp(n uint64) uint64 { return (n + leanPage - 1) / leanPage * leanPage }
