// Package files opens the files of a plan, each once, and keeps them open for
// as long as the plan needs them.
//
// What is checked, what is merged and what the VM reads are then one file,
// whatever happens to its name in between. The package owns the descriptors
// and nothing else: what a file holds is for its callers to look at. A [File]
// and a [Set] may be used from any goroutine, but not after Close.
//
// It works with bare system calls, as a plan may look at hundreds of layers: an
// os.File would cost as many calls again to find out that it cannot be polled.
package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ErrLimit is a file that cannot be open beside the others, as the process may
// not have so many. It wraps the class of containerd for that.
var ErrLimit = fmt.Errorf("too many open files: %w", errdefs.ErrResourceExhausted)

// Access says what a file is opened for.
type Access int

const (
	// ReadOnly is for layers.
	ReadOnly Access = unix.O_RDONLY
	// ReadWrite is for a writable image.
	ReadWrite Access = unix.O_RDWR
)

// File is an open file, and what it was when it was opened.
type File struct {
	Path    string
	Regular bool
	Size    int64 // in bytes

	// Dev, Inode and ModTime, with Size, tell this state of the file from any
	// other: a file that is replaced or written to differs in one of them.
	Dev, Inode uint64
	ModTime    time.Time

	mu     sync.Mutex
	fd     int // -1 when closed
	handle *os.File
}

// Open opens the file at path, following symbolic links. It never waits, also
// not for the writer of a FIFO; what is no regular file is for the caller to
// refuse. The file is the caller's to close. Errors name the path and wrap that
// of the system, or ErrLimit.
func Open(path string, access Access) (*File, error) { return open(path, int(access)) }

// OpenNoFollow is Open, but fails where path itself is a symbolic link.
func OpenNoFollow(path string, access Access) (*File, error) {
	return open(path, int(access)|unix.O_NOFOLLOW)
}

func open(path string, flags int) (*File, error) {
	for {
		// O_NONBLOCK is for FIFOs; Handle takes it away again.
		fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		switch {
		case err == nil:
			return newFile(path, fd)
		case err == unix.EMFILE:
			return nil, fmt.Errorf("open %q: %w: RLIMIT_NOFILE is %d; raise it (LimitNOFILE= of containerd's unit)", path, ErrLimit, limit())
		case err != unix.EINTR:
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

func newFile(path string, fd int) (*File, error) {
	f := &File{Path: path, fd: fd}
	if err := f.stat(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Of makes f a File, which from then on owns it. After an error f is closed.
func Of(f *os.File) (*File, error) {
	file := &File{Path: f.Name(), fd: int(f.Fd()), handle: f}
	if err := file.stat(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (f *File) stat() error {
	var stat unix.Stat_t
	if err := unix.Fstat(f.fd, &stat); err != nil {
		return &os.PathError{Op: "stat", Path: f.Path, Err: err}
	}
	f.Regular = stat.Mode&unix.S_IFMT == unix.S_IFREG
	f.Size = stat.Size
	f.Dev, f.Inode = uint64(stat.Dev), stat.Ino
	f.ModTime = time.Unix(stat.Mtim.Unix())
	return nil
}

// Same says whether both are the same file, under whatever names.
func (f *File) Same(other *File) bool { return f.Dev == other.Dev && f.Inode == other.Inode }

// Fd is the descriptor, which stays the File's.
func (f *File) Fd() int { return f.fd }

// ReadAt is that of io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	defer runtime.KeepAlive(f)
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, &os.PathError{Op: "read", Path: f.Path, Err: err}
		case n == 0:
			return done, io.EOF
		}
		done += max(n, 0)
	}
	return done, nil
}

// Handle is the file as the rest of the world has files: for a child, or for
// the VM. It is the same at each call and closed with f; the caller does not
// close it. After Close it is nil.
func (f *File) Handle() *os.File {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.handle == nil && f.fd >= 0 {
		// io_uring of some kernels fails reads of a non-blocking file with
		// EAGAIN where they would have to wait for the disk.
		if err := unix.SetNonblock(f.fd, false); err == nil {
			f.handle = os.NewFile(uintptr(f.fd), f.Path)
		}
	}
	return f.handle
}

// Close closes the file, at the first call.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return nil
	}
	fd, handle := f.fd, f.handle
	f.fd, f.handle = -1, nil
	if handle != nil {
		return handle.Close()
	}
	if err := unix.Close(fd); err != nil {
		return &os.PathError{Op: "close", Path: f.Path, Err: err}
	}
	return nil
}

// limit is how many files this process may have open.
func limit() uint64 {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 0
	}
	return r.Cur
}

// besides is how many descriptors a process has for other things than the
// files of one plan.
const besides = 64

// Room says whether a process with the limit of this one can have n files open
// beside what else it needs; if not, the error is ErrLimit and names both
// numbers. The Go runtime has raised the soft limit to the hard one.
func Room(n int) error {
	if most := limit(); uint64(n+besides) > most {
		return fmt.Errorf("%w: %d files and %d for the rest, but RLIMIT_NOFILE is %d; raise it (LimitNOFILE= of containerd's unit)", ErrLimit, n, besides, most)
	}
	return nil
}
