package rootfs

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// writableImage reads the mount that holds the writable directories.
func (m *mount) writableImage(r *resolver) (*Upper, error) {
	if m.fs != "ext4" {
		return nil, m.refuse(ClassInvalid, "", "is the writable layer of the overlay but not ext4")
	}
	if m.has("mkdir") {
		return nil, m.refuse(ClassUnknown, "", "the transform mkdir of a writable image is not handled")
	}
	source, err := r.file(m.Source, m.index)
	if err != nil {
		return nil, m.refuse(ClassInvalid, "", "source %v", err)
	}
	upper := &Upper{Mount: m.index, Path: source, at: m}
	if m.has("mkfs") {
		format, err := m.format()
		if err != nil {
			return nil, err
		}
		upper.Format = format
	}
	options, unknown := guestOptions(m.Options, ext4Options, func(o string) bool { return strings.HasPrefix(o, optMkfsPrefix) })
	if mapsOwners(unknown) {
		return nil, m.mappedOwners(unknown)
	}
	if unknown != "" {
		return nil, m.refuse(ClassUnknown, unknown, "is not known for a writable image")
	}
	if !slices.Contains(options, "rw") {
		return nil, m.refuse(ClassInvalid, "", "is the writable layer but not mounted rw")
	}
	upper.Options = options
	return upper, nil
}

// addMkdirs reads the directives of mount by.
func (u *Upper) addMkdirs(r *resolver, by *mount, directives []string) error {
	for _, o := range directives {
		path, dir, err := splitMkdir(strings.TrimPrefix(o, optMkdirPath))
		if err != nil {
			return by.refuse(ClassInvalid, o, "%v", err)
		}
		at, err := r.place(path, by.index)
		if err != nil {
			return by.refuse(ClassInvalid, o, "%v", err)
		}
		if at.mount != u.Mount || at.path == "" {
			return by.refuse(ClassInvalid, o, "is not a directory in the writable image (mount %d)", u.Mount)
		}
		dir.Path = at.path
		u.Mkdirs = append(u.Mkdirs, dir)
	}
	return nil
}

// Bounds of an image to be made. Below the least, mkfs.ext4 leaves no room for
// a journal.
const (
	leastImage = 2 << 20
	mostImage  = 64 << 40
)

// format reads what containerd's mkfs transform would (core/mount/manager/mkfs.go).
func (m *mount) format() (*Format, error) {
	f := &Format{FS: "ext4"}
	seen := make(map[string]bool)
	for _, o := range m.Options {
		directive, ok := strings.CutPrefix(o, optMkfsPrefix)
		if !ok {
			continue
		}
		key, value, _ := strings.Cut(directive, "=")
		if seen[key] {
			return nil, m.refuse(ClassInvalid, o, "stands twice")
		}
		seen[key] = true
		var err error
		switch key {
		case "fs":
			if value != f.FS {
				return nil, m.refuse(ClassUnknown, o, "a writable image is ext4, no other filesystem is made")
			}
		case "size":
			f.Size, err = parseSize(value)
		case "uuid":
			f.UUID, err = uuid.Parse(value)
		default:
			return nil, m.refuse(ClassUnknown, o, "is not known to mkfs (fs, size, uuid are)")
		}
		if err != nil {
			return nil, m.refuse(ClassInvalid, o, "%v", err)
		}
	}
	if !seen["size"] {
		return nil, m.refuse(ClassInvalid, "", "mkfs without %ssize=", optMkfsPrefix)
	}
	return f, nil
}

// parseSize reads a length in bytes, or with one of the units that containerd
// takes, all of which are powers of 1024.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(strings.ToLower(s), "kmgtib")
	shift, ok := map[string]int{
		"": 0, "b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20,
		"g": 30, "gb": 30, "gib": 30, "t": 40, "tb": 40, "tib": 40,
	}[strings.ToLower(s[len(digits):])]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n < 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("size %s is not a number of bytes, or with one of the units k, m, g, t", printable(s))
	}
	if n <<= shift; n < leastImage || n > mostImage || n%512 != 0 {
		return 0, fmt.Errorf("size of %d bytes is not a multiple of 512 from %d to %d", n, int64(leastImage), int64(mostImage))
	}
	return n, nil
}
