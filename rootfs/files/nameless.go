package files

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// Nameless makes an empty file in dir that is gone when it is closed, unless it
// is published: nothing is left of it, whatever kills the process.
func Nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a file without a name in %q: %w; the directory must be on a filesystem with O_TMPFILE, such as ext4, xfs, btrfs or tmpfs", dir, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir, "new file")), nil
}

// Publish gives a nameless file its name, which must be in the directory where
// it was made. If the machine loses its power the name may be gone again, and the
// file with it; that a file which keeps its name has its content is for the
// caller to see to, by a sync before.
//
// What has the name already is replaced if the caller says so, and else stays,
// and the error wraps os.ErrExist. A symbolic link counts as such a file and is
// not followed.
func Publish(f *os.File, path string, replace bool) error {
	self := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if replace && errors.Is(err, unix.EEXIST) {
		// A link never replaces a file, a rename does.
		aside := fmt.Sprintf("%s.%s", path, uuid.NewString())
		if err = unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, aside, unix.AT_SYMLINK_FOLLOW); err == nil {
			if err = os.Rename(aside, path); err != nil {
				os.Remove(aside)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("name %q: %w", path, err)
	}
	return nil
}
