// Package vmdk writes VMDK descriptors of type twoGbMaxExtentFlat, the format
// in which QEMU joins ranges of plain files into one read-only disk.
//
// It owns the text of the descriptor and its way into a directory, and nothing
// else: it opens no layer and starts no goroutine, and every function may be
// called from any goroutine.
//
// What the text must look like is decided by block/vmdk.c of QEMU, which finds
// its keys by searching and its extents line by line with sscanf; what VMware
// would want besides (geometry, adapter type) is left out, as QEMU never reads
// it. QEMU opens the files when the disk is attached, looks at neither their
// length nor their kind, and reads zeros behind their end: that the ranges are
// there is for the caller to know.
package vmdk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Extent is a range of a host file that becomes a range of the disk.
type Extent struct {
	Path    string `json:"path"`    // absolute host path; "" for the disk's Generated file
	Sectors int64  `json:"sectors"` // length in sectors of 512 bytes
	Offset  int64  `json:"offset"`  // start within the file, in sectors
}

// Generated is a file that is made for one disk alone, such as for a partition
// table: Data, and zeros behind it up to Size bytes. Extents without a path are
// ranges of it.
//
// A type ZERO of extents is in the format, but QEMU passes over such a line
// without a word, so that zeros have to come from a file.
type Generated struct {
	Data []byte
	Size int64
}

const (
	sectorSize = 512

	// maxExtentSectors is 2 GiB, what the type of the descriptor promises.
	maxExtentSectors = 2 << 30 / sectorSize

	// maxPath is what fits QEMU's buffer for the name of an extent; it refuses
	// the whole disk for a longer one, when it is too late to say whose.
	maxPath = 511

	// maxSectors keeps every byte offset inside an int64.
	maxSectors = 1 << 52

	// maxDescriptor is what QEMU reads of a descriptor; it does not notice
	// the extents behind that.
	maxDescriptor = 1<<20 - 1

	// parentKey makes QEMU open a backing file, wherever it stands in the
	// text.
	parentKey = "parentFileNameHint"
)

// Errors that Descriptor wraps.
var (
	// ErrPath is a path that QEMU would not read as it is written.
	ErrPath = errors.New("path cannot stand in a VMDK descriptor")
	// ErrExtent is a range that cannot be.
	ErrExtent = errors.New("extent is out of range")
	// ErrTooLong is a descriptor of which QEMU would not read the end.
	ErrTooLong = errors.New("VMDK descriptor is too long")
)

// header stands before the extents. There is no blank line in or after it:
// sscanf skips a line end like any blank, so that QEMU would take the extent
// behind a blank line twice. The content ID is any number, and the parent's
// is the one that means none. Extents are RW for a read-only disk too, since
// QEMU aborts on a query of a disk with RDONLY ones.
const header = `# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="twoGbMaxExtentFlat"
`

// Descriptor is the text for a disk made of the extents, in order. Extents
// longer than 2 GiB become several lines.
func Descriptor(extents []Extent) ([]byte, error) {
	if len(extents) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrExtent)
	}
	text := append(make([]byte, 0, len(header)+128*len(extents)), header...)
	for i, e := range extents {
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("extent %d: %w", i, err)
		}
		for done := int64(0); done < e.Sectors; {
			n := min(e.Sectors-done, maxExtentSectors)
			text = strconv.AppendInt(append(text, "RW "...), n, 10)
			text = append(append(append(text, ` FLAT "`...), e.Path...), `" `...)
			text = append(strconv.AppendInt(text, e.Offset+done, 10), '\n')
			done += n
			if len(text) > maxDescriptor {
				return nil, fmt.Errorf("%w: extent %d of %d, %q, passes %d bytes; use fewer layers or shorter paths", ErrTooLong, i, len(extents), e.Path, maxDescriptor)
			}
		}
	}
	return text, nil
}

func (e Extent) check() error {
	if e.Sectors <= 0 || e.Sectors > maxSectors || e.Offset < 0 || e.Offset > maxSectors {
		return fmt.Errorf("%w: %d sectors at %d of %q", ErrExtent, e.Sectors, e.Offset, e.Path)
	}
	return CheckPath(e.Path)
}

// CheckPath says whether QEMU reads path in a descriptor as it is written.
func CheckPath(path string) error {
	switch {
	case !filepath.IsAbs(path):
		// QEMU would take what stands before a colon for a protocol.
		return fmt.Errorf("%w: %.600q is not absolute", ErrPath, path)
	case len(path) > maxPath:
		return fmt.Errorf("%w: %.600q has %d bytes, at most %d are possible; move the snapshotter's root to a shorter path", ErrPath, path, len(path), maxPath)
	case !utf8.ValidString(path):
		return fmt.Errorf("%w: %q is not UTF-8", ErrPath, path)
	case strings.Contains(path, parentKey):
		return fmt.Errorf("%w: %q has the word %s, which names a backing file", ErrPath, path, parentKey)
	}
	for i := range len(path) {
		switch c := path[i]; {
		case c == '"':
			return fmt.Errorf("%w: %q has a quotation mark", ErrPath, path)
		case c < 0x20 || c == 0x7f:
			return fmt.Errorf("%w: %q has a control character", ErrPath, path)
		}
	}
	return nil
}

// Resolve returns the extents with path in the place of the file that is made
// for the disk.
func Resolve(extents []Extent, path string) []Extent {
	out := slices.Clone(extents)
	for i := range out {
		if out[i].Path == "" {
			out[i].Path = path
		}
	}
	return out
}

// Write puts the descriptor of the extents into dir under name and returns its
// path. The file appears whole or not at all, replacing one of that name; it
// is the caller's to remove.
func Write(dir, name string, extents []Extent) (path string, err error) {
	text, err := Descriptor(extents)
	if err != nil {
		return "", err
	}
	if path, err = put(dir, name, text, int64(len(text))); err != nil {
		return "", fmt.Errorf("write VMDK descriptor: %w", err)
	}
	return path, nil
}

// WriteDisk is Write for extents of which some are ranges of a generated file,
// which is put beside the descriptor as name.data. Without one it is Write.
// Both files are the caller's to remove, after an error too.
func WriteDisk(dir, name string, extents []Extent, generated *Generated) (path string, err error) {
	if generated == nil {
		return Write(dir, name, extents)
	}
	data, err := put(dir, name+".data", generated.Data, generated.Size)
	if err != nil {
		return "", fmt.Errorf("write %s of a VMDK disk: %w", name+".data", err)
	}
	return Write(dir, name, Resolve(extents, data))
}

// put makes a file of data and zeros up to size bytes, whole or not at all.
func put(dir, name string, data []byte, size int64) (path string, err error) {
	if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
		return "", fmt.Errorf("name %q is not a file name", name)
	}
	if size < int64(len(data)) {
		return "", fmt.Errorf("%d bytes of data are more than %d", len(data), size)
	}
	tmp, err := os.CreateTemp(dir, "."+name+"-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(data); err != nil {
		return "", err
	}
	if err = tmp.Truncate(size); err != nil {
		return "", err
	}
	if err = tmp.Sync(); err != nil {
		return "", err
	}
	if err = tmp.Close(); err != nil {
		return "", err
	}
	path = filepath.Join(dir, name)
	if err = os.Rename(tmp.Name(), path); err != nil {
		return "", err
	}
	return path, nil
}
