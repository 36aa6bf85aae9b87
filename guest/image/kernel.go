package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Formats of the kernel file.
const (
	// FormatELF is the uncompressed kernel with a PVH entry: QEMU jumps into
	// it without firmware, boot loader and decompression.
	FormatELF = "elf"
	// FormatBzImage is the kernel as the distribution ships it.
	FormatBzImage = "bzImage"
)

// Offsets in a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel
// Header"); all fields are little-endian.
const (
	bzSetupSects    = 0x1f1
	bzMagic         = 0x202
	bzVersion       = 0x206
	bzPayloadOffset = 0x248
	bzPayloadLength = 0x24c
	bzHeaderEnd     = 0x250

	// The payload fields came with protocol 2.08.
	bzMinVersion = 0x0208
)

// extractKernel takes the uncompressed kernel out of a bzImage. It fails if
// that is not one which QEMU can enter directly; the caller then keeps the
// bzImage, and the reason.
func extractKernel(bzImage []byte) ([]byte, error) {
	payload, err := kernelPayload(bzImage)
	if err != nil {
		return nil, err
	}
	vmlinux, err := decompress(payload, maxKernel, true)
	if err != nil {
		return nil, fmt.Errorf("unpack the kernel: %w", err)
	}
	if err := enterable(vmlinux); err != nil {
		return nil, err
	}
	return vmlinux, nil
}

// enterable says whether QEMU can enter an uncompressed kernel.
func enterable(vmlinux []byte) error {
	file, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return fmt.Errorf("the uncompressed kernel is not ELF: %w", err)
	}
	if !hasPVHEntry(file) {
		return errors.New("the kernel has no PVH entry point (CONFIG_PVH)")
	}
	return nil
}

// kernelPayload returns the compressed part of a bzImage.
func kernelPayload(bzImage []byte) ([]byte, error) {
	if len(bzImage) < bzHeaderEnd || string(bzImage[bzMagic:bzMagic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage: no setup header")
	}
	if version := binary.LittleEndian.Uint16(bzImage[bzVersion:]); version < bzMinVersion {
		return nil, fmt.Errorf("boot protocol %#x is older than %#x", version, bzMinVersion)
	}
	setupSects := uint64(bzImage[bzSetupSects])
	if setupSects == 0 {
		setupSects = 4 // boot.rst: "If this field contains 0, the real value is 4"
	}
	start := (setupSects+1)*512 + uint64(binary.LittleEndian.Uint32(bzImage[bzPayloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(bzImage[bzPayloadLength:]))
	if length < 8 || start+length > uint64(len(bzImage)) {
		return nil, fmt.Errorf("payload [%d, +%d) is outside the bzImage of %d bytes", start, length, len(bzImage))
	}
	return bzImage[start : start+length], nil
}

const (
	// The ELF note with the 32-bit physical entry address of PVH: its name
	// and type (include/xen/interface/elfnote.h).
	pvhNoteName = "Xen\x00"
	pvhNoteType = 18

	maxNotes = 1 << 20 // bytes of a note segment
)

// hasPVHEntry looks for the note that QEMU looks for (hw/i386/x86-common.c,
// load_elfboot): in a PT_NOTE segment, not in a section.
func hasPVHEntry(file *elf.File) bool {
	for _, segment := range file.Progs {
		if segment.Type != elf.PT_NOTE || segment.Filesz > maxNotes {
			continue
		}
		notes := make([]byte, segment.Filesz)
		if _, err := segment.ReadAt(notes, 0); err != nil && !errors.Is(err, io.EOF) {
			continue
		}
		if findNote(notes, file.ByteOrder, pvhNoteName, pvhNoteType) {
			return true
		}
	}
	return false
}

// findNote walks ELF notes: three words (name size, descriptor size, type),
// then name and descriptor, each padded to four bytes.
func findNote(notes []byte, order binary.ByteOrder, name string, kind uint32) bool {
	for len(notes) >= 12 {
		nameSize, descSize := uint64(order.Uint32(notes)), uint64(order.Uint32(notes[4:]))
		noteKind := order.Uint32(notes[8:])
		notes = notes[12:]
		namePadded, descPadded := (nameSize+3)&^3, (descSize+3)&^3
		if namePadded+descPadded > uint64(len(notes)) {
			return false
		}
		if noteKind == kind && string(notes[:nameSize]) == name {
			return true
		}
		notes = notes[namePadded+descPadded:]
	}
	return false
}
