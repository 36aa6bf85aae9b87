package files

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// inRoot is how a path is looked up in a container: as after chroot(2), links and
// ".." included, and by no link that the kernel makes up.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// tries is how often a look-up is made that fails because directories of the
// container moved meanwhile (openat2(2), EAGAIN).
const tries = 16

// openDir opens a directory of a container.
func openDir(root *os.File, name string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: inRoot}
	for try := 1; ; try++ {
		fd, err := unix.Openat2(int(root.Fd()), rooted(name), &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) || try == tries {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// makeDir opens a directory of a container and makes it, and those on its way,
// if they are missing.
func makeDir(root *os.File, name string) (*os.File, error) {
	name = rooted(name)
	dir, err := openDir(root, name)
	if name == "/" || !errors.Is(err, os.ErrNotExist) {
		return dir, err
	}
	parent, err := makeDir(root, path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), path.Base(name), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return openDir(root, name)
}

func rooted(name string) string { return path.Clean("/" + name) }

// confined is a directory that was opened, as a root that no name leaves.
func confined(dir *os.File) (*os.Root, error) {
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Name(), err)
	}
	return root, nil
}
