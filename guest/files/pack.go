package files

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// pack writes an archive of a name in a directory, and of what is below it,
// unless it is to be the entry alone.
func pack(dir *os.Root, name string, entry bool, archive io.Writer) error {
	out := tar.NewWriter(archive)
	// WalkDir follows what it begins with, if that is a link.
	first, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if !first.IsDir() {
		return errors.Join(add(out, dir, name, first), out.Close())
	}
	err = fs.WalkDir(dir.FS(), name, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := dir.Lstat(name)
		if err != nil {
			return err
		}
		if err := add(out, dir, name, info); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
		if entry && info.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func add(out *tar.Writer, dir *os.Root, name string, info fs.FileInfo) error {
	var link string
	var err error
	switch info.Mode().Type() {
	case fs.ModeSocket:
		return nil
	case fs.ModeSymlink:
		if link, err = dir.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(nameless{info}, link)
	if err != nil {
		return err
	}
	h.Name = name
	if info.IsDir() {
		h.Name += "/"
	}
	if !info.Mode().IsRegular() {
		return out.WriteHeader(h)
	}
	// It can have become something else meanwhile, at which nobody shall wait.
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		err = fmt.Errorf("it became shorter: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// nameless is a file whose owners have no names: those of the guest are not those
// of the container.
type nameless struct{ fs.FileInfo }

func (nameless) Uname() (string, error) { return "", nil }
func (nameless) Gname() (string, error) { return "", nil }
