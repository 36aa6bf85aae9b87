// Package tree lists a file tree so that two listings can be compared byte by
// byte: what a container sees, and what the same image is elsewhere.
//
// It owns the format of the listing. It reads only: no file is written, no
// device or fifo opened, no link followed. List holds one directory of names
// and one buffer in memory, whatever the size of the tree, and the table of
// hard links. It starts no goroutine; any goroutine may call it.
package tree

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrIncomplete says that something in the tree could not be read. The listing
// goes on and has the reason in the line, as error="…".
var ErrIncomplete = errors.New("the listing is incomplete")

// Options choose what is listed.
type Options struct {
	// OneFilesystem leaves out mount points below the root, with all that is
	// under them; List returns their paths.
	OneFilesystem bool
	// Skip leaves out these paths, relative to the root, with all that is
	// under them.
	Skip []string
	// ModTime adds the time of modification, in seconds and nanoseconds.
	ModTime bool
}

// List writes one line for each path below root, and for root itself as ".",
// depth first, names in byte order:
//
//	"usr" dir 0755 0:0
//	"usr/bin/su" file 4755 0:0 71912 sha256:… xattr "user.note"="hello"
//	"usr/bin/also-su" file 4755 0:0 71912 sha256:… same "usr/bin/su" xattr …
//	"bin" link 0777 0:0 to "usr/bin"
//	"dev/null" char 0666 0:0 1:3
//
// Names, link targets and attributes are Go string literals in ASCII, so any
// byte can be in them. "same" names the first path of a group of hard links.
// Sizes and link counts of directories are left out, and the link counts of
// files: filesystems disagree about them where trees are equal, an overlay
// still counts links that a layer above has deleted. So are the attributes
// trusted.overlay.*, which are the overlay's own.
//
// The second result are the mount points that OneFilesystem left out. The error
// is ErrIncomplete if a path could not be read, or that of w.
func List(w io.Writer, root string, options Options) ([]string, error) {
	out := bufio.NewWriterSize(w, 64<<10)
	l := &lister{root: root, options: options, out: out, links: map[inode]string{}, buffer: make([]byte, 256<<10)}
	l.visit(".")
	if err := out.Flush(); err != nil {
		return l.mounts, err
	}
	if l.failed > 0 {
		return l.mounts, fmt.Errorf("%w: %d paths below %s could not be read", ErrIncomplete, l.failed, root)
	}
	return l.mounts, nil
}

type inode struct {
	major, minor uint32
	number       uint64
}

type lister struct {
	root    string
	options Options
	out     *bufio.Writer // its first error stays and is returned by Flush
	links   map[inode]string
	mounts  []string
	failed  int
	buffer  []byte
}

// visit lists the path and what is below it.
func (l *lister) visit(name string) {
	if slices.Contains(l.options.Skip, name) {
		return
	}
	full := filepath.Join(l.root, name)
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, full, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &st)
	if err != nil {
		l.line(name, "unknown", l.failure(err))
		return
	}
	// The attribute, not the device: an overlay gives files of each layer a
	// device of their own, and a file can be a mount point too.
	if l.options.OneFilesystem && name != "." && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		l.mounts = append(l.mounts, name)
		return
	}
	kind := kindOf(st.Mode)
	fields := []string{kind, fmt.Sprintf("%04o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)}
	fields = append(fields, l.content(name, full, kind, &st)...)
	if l.options.ModTime {
		fields = append(fields, fmt.Sprintf("mtime %d.%09d", st.Mtime.Sec, st.Mtime.Nsec))
	}
	fields = append(fields, l.xattrs(full)...)
	l.line(name, fields...)

	if kind == "dir" {
		l.visitBelow(name, full)
	}
}

func (l *lister) visitBelow(name, full string) {
	entries, err := os.ReadDir(full) // sorted by name
	for _, entry := range entries {
		l.visit(path.Join(name, entry.Name()))
	}
	if err != nil {
		l.line(path.Join(name, "..."), "unknown", l.failure(err))
	}
}

func (l *lister) line(name string, fields ...string) {
	l.out.WriteString(quote(name))
	for _, field := range fields {
		l.out.WriteByte(' ')
		l.out.WriteString(field)
	}
	l.out.WriteByte('\n')
}

// failure counts an error and words it without the path, which differs from one
// root to the next.
func (l *lister) failure(err error) string {
	l.failed++
	var errno unix.Errno
	if errors.As(err, &errno) {
		return "error=" + quote(unix.ErrnoName(errno))
	}
	return "error=" + quote(err.Error())
}

// content is what a path is apart from its name and owner.
func (l *lister) content(name, full, kind string, st *unix.Statx_t) []string {
	var fields []string
	switch kind {
	case "file":
		fields = append(fields, strconv.FormatUint(st.Size, 10))
		sum, err := l.sum(full)
		if err != nil {
			fields = append(fields, l.failure(err))
		} else {
			fields = append(fields, "sha256:"+sum)
		}
	case "link":
		target, err := os.Readlink(full)
		if err != nil {
			fields = append(fields, l.failure(err))
		} else {
			fields = append(fields, "to "+quote(target))
		}
	case "char", "block":
		fields = append(fields, fmt.Sprintf("%d:%d", st.Rdev_major, st.Rdev_minor))
	}
	if kind != "dir" && st.Nlink > 1 {
		id := inode{st.Dev_major, st.Dev_minor, st.Ino}
		if first, seen := l.links[id]; seen {
			fields = append(fields, "same "+quote(first))
		} else {
			l.links[id] = name
		}
	}
	return fields
}

// sum reads a regular file. Whoever put something else in its place since it
// was looked at gets an error, not an open fifo that waits for ever.
func (l *lister) sum(full string) (string, error) {
	fd, err := unix.Open(full, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	file := os.NewFile(uintptr(fd), full)
	defer file.Close()
	if info, err := file.Stat(); err != nil {
		return "", err
	} else if !info.Mode().IsRegular() {
		return "", unix.ESTALE
	}
	hash := sha256.New()
	if _, err := io.CopyBuffer(hash, readerOnly{file}, l.buffer); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// readerOnly hides WriteTo, so that io.CopyBuffer uses the buffer.
type readerOnly struct{ io.Reader }

const overlayPrivate = "trusted.overlay."

// xattrs are the extended attributes in byte order of their names. A filesystem
// without any is one with none.
func (l *lister) xattrs(full string) []string {
	names, err := readGrowing(func(dest []byte) (int, error) { return unix.Llistxattr(full, dest) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return []string{"xattr", l.failure(err)}
	}
	var fields []string
	list := strings.Split(string(names), "\x00")
	slices.Sort(list)
	for _, name := range list {
		if name == "" || strings.HasPrefix(name, overlayPrivate) {
			continue
		}
		value, err := readGrowing(func(dest []byte) (int, error) { return unix.Lgetxattr(full, name, dest) })
		if err != nil {
			fields = append(fields, "xattr "+quote(name), l.failure(err))
			continue
		}
		fields = append(fields, "xattr "+quote(name)+"="+quote(string(value)))
	}
	return fields
}

// readGrowing calls a function that fills a buffer or answers ERANGE.
func readGrowing(fill func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		dest := make([]byte, size)
		n, err := fill(dest)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return dest[:n], nil
	}
}

func kindOf(mode uint16) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "unknown"
}

func quote(s string) string { return strconv.QuoteToASCII(s) }

// Diff says in what two listings differ, at most limit lines, each with "-" for
// what only want has or "+" for what only got has; nothing if they are equal.
func Diff(want, got []byte, limit int) []string {
	if bytes.Equal(want, got) {
		return nil
	}
	inWant, inGot := lineSet(want), lineSet(got)
	var diff []string
	add := func(sign string, listing []byte, other map[string]bool) {
		for line := range strings.Lines(string(listing)) {
			if line = strings.TrimSuffix(line, "\n"); !other[line] {
				diff = append(diff, sign+line)
			}
		}
	}
	add("-", want, inGot)
	add("+", got, inWant)
	if len(diff) == 0 {
		return []string{"the same lines in another order"}
	}
	// By path, what is missing before what is there instead.
	slices.SortStableFunc(diff, func(a, b string) int { return strings.Compare(pathOf(a[1:]), pathOf(b[1:])) })
	if more := len(diff) - limit; more > 0 {
		diff = append(diff[:limit], fmt.Sprintf("and %d lines more", more))
	}
	return diff
}

func lineSet(listing []byte) map[string]bool {
	set := make(map[string]bool)
	for line := range strings.Lines(string(listing)) {
		set[strings.TrimSuffix(line, "\n")] = true
	}
	return set
}

// pathOf is the quoted path at the start of a line.
func pathOf(line string) string {
	quoted, err := strconv.QuotedPrefix(line)
	if err != nil {
		return line
	}
	return quoted
}
