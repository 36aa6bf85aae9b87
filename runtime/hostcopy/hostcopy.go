// Package hostcopy finds what lies in a file or directory of the host that a
// guest is to get a copy of, and reads it.
//
// Scan looks and Read reads; between them nothing is followed out of the
// directory, whatever somebody puts into it meanwhile. A Tree owns the
// descriptor that it was found by until Close; one goroutine at a time may use
// it. The package changes nothing on the host, starts no goroutine and knows
// nothing of guests: what becomes of the entries is for the caller.
package hostcopy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/runtime/hostfs"
)

// ErrBytes and ErrEntries are wrapped when a Budget does not suffice.
var (
	ErrBytes   = errors.New("too much to copy")
	ErrEntries = errors.New("too many files to copy")
)

// maxDepth bounds directories in directories.
const maxDepth = 24

// Budget is what may be copied, in all scans that share it. It is used up by
// Scan, from one goroutine at a time.
type Budget struct {
	Bytes   int64 // content of regular files
	Entries int   // files, directories and links
}

// Entry is one thing to copy.
type Entry struct {
	Name   string // below the tree's root, "" for the root itself; valid UTF-8
	Mode   uint32 // as in stat(2): a regular file, a directory or a link
	UID    uint32
	GID    uint32
	Size   int64  // of a regular file, in bytes
	Target string // of a link
	dev    uint64
	ino    uint64
}

// Type is the type bits of the mode: unix.S_IFREG, S_IFDIR or S_IFLNK.
func (e Entry) Type() uint32 { return e.Mode & unix.S_IFMT }

// Tree is a file or a directory with all that is in it. Parents come before
// what is in them, and names are in order.
type Tree struct {
	Entries []Entry
	source  string
	root    int // descriptor with O_PATH
	// published is the directory that holds the content, if the tree is kept by a
	// kubelet.
	published string
}

// Scan looks at source, an absolute path in which links are followed, and at
// everything below it, where none are. Of a directory that a kubelet keeps it sees
// what is published (Published). What is neither a file nor a directory
// nor a link is refused with an error of class errdefs.ErrNotImplemented that
// names it; a Budget that does not suffice gives ErrBytes or ErrEntries. The
// caller closes the Tree.
func Scan(source string, b *Budget) (_ *Tree, err error) {
	root, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: source, Err: err}
	}
	t := &Tree{source: source, root: root}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	// A link may have led there.
	if err := hostfs.Refuse(root, source); err != nil {
		return nil, err
	}
	e, err := t.entry(root, "", b)
	if err != nil {
		return nil, err
	}
	t.Entries = append(t.Entries, e)
	if e.Type() != unix.S_IFDIR {
		return t, nil
	}
	if err := t.readPublished(); err != nil {
		return nil, err
	}
	if err := t.walk("", 0, b); err != nil {
		return nil, err
	}
	return t, t.checkPublished()
}

// Close gives the descriptor back. It may be called more than once.
func (t *Tree) Close() {
	if t.root >= 0 {
		unix.Close(t.root)
		t.root = -1
	}
}

// beneath is how everything below the root is opened: not through a link, not
// upwards, and not into another filesystem.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

func (t *Tree) open(name string, flags uint64) (int, error) {
	if name == "" {
		// The descriptor itself, in another mode: nothing is looked up.
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", t.root), int(flags|unix.O_CLOEXEC)&^unix.O_NOFOLLOW, 0)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: t.source, Err: err}
		}
		return fd, nil
	}
	fd, err := unix.Openat2(t.root, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: beneath})
	if errors.Is(err, unix.EXDEV) {
		return -1, fmt.Errorf("%s is another filesystem mounted below %s, and only one is copied: %w", path.Join(t.source, name), t.source, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path.Join(t.source, name), Err: err}
	}
	return fd, nil
}

// walk adds what is in a directory.
func (t *Tree) walk(dir string, depth int, b *Budget) error {
	if depth == maxDepth {
		return fmt.Errorf("%s is more than %d directories deep: %w", path.Join(t.source, dir), maxDepth, errdefs.ErrResourceExhausted)
	}
	names, err := t.names(dir, b.Entries)
	if err != nil {
		return err
	}
	for _, name := range names {
		if dir == "" && t.isLeftOver(name) {
			continue
		}
		name = path.Join(dir, name)
		fd, err := t.open(name, unix.O_PATH)
		if err != nil {
			return err
		}
		e, err := t.entry(fd, name, b)
		unix.Close(fd)
		if err != nil {
			return err
		}
		t.Entries = append(t.Entries, e)
		if e.Type() == unix.S_IFDIR {
			if err := t.walk(name, depth+1, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// names lists a directory, at most one name more than there is room for.
func (t *Tree) names(dir string, room int) ([]string, error) {
	fd, err := t.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path.Join(t.source, dir))
	defer f.Close()
	names, err := f.Readdirnames(room + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// entry describes what a descriptor is of, and takes it off the budget.
func (t *Tree) entry(fd int, name string, b *Budget) (Entry, error) {
	full := path.Join(t.source, name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Entry{}, &os.PathError{Op: "stat", Path: full, Err: err}
	}
	e := Entry{Name: name, Mode: st.Mode, UID: st.Uid, GID: st.Gid, dev: st.Dev, ino: st.Ino}
	if !utf8.ValidString(name) {
		return e, fmt.Errorf("the name %q is not UTF-8 and cannot be sent to the guest: %w", full, errdefs.ErrNotImplemented)
	}
	switch e.Type() {
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFDIR:
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", target)
		if err != nil {
			return e, &os.PathError{Op: "readlink", Path: full, Err: err}
		}
		e.Target = string(target[:n])
	default:
		return e, fmt.Errorf("%s is a %s of the host, which the guest cannot have: %w", full, kind(e.Type()), errdefs.ErrNotImplemented)
	}
	if b.Entries--; b.Entries < 0 {
		return e, fmt.Errorf("%s: %w", full, ErrEntries)
	}
	if b.Bytes -= e.Size; b.Bytes < 0 {
		return e, fmt.Errorf("%s: %w", full, ErrBytes)
	}
	return e, nil
}

func kind(mode uint32) string {
	switch mode {
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFBLK, unix.S_IFCHR:
		return "device"
	}
	return fmt.Sprintf("file of type %#o", mode)
}

// Read opens a regular file of the tree for reading. It must still be the one
// that was found, of the same size.
func (t *Tree) Read(e Entry) (*os.File, error) {
	full := path.Join(t.source, e.Name)
	fd, err := t.open(e.Name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "stat", Path: full, Err: err}
	}
	if st.Dev != e.dev || st.Ino != e.ino || st.Size != e.Size || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, fmt.Errorf("%s has changed since it was looked at: %w", full, errdefs.ErrUnavailable)
	}
	return os.NewFile(uintptr(fd), full), nil
}
