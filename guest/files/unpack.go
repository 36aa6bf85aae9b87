package files

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// unpack writes an archive into a directory.
func unpack(dir *os.Root, archive io.Reader, owners bool) error {
	for entries := tar.NewReader(archive); ; {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w: %w", errdefs.ErrInvalidArgument, err)
		}
		name, err := local(h.Name)
		if err != nil {
			return err
		}
		if err := write(dir, name, h, entries); err != nil {
			return fmt.Errorf("unpack %.256q: %w", h.Name, err)
		}
		if err := own(dir, name, h, owners); err != nil {
			return fmt.Errorf("unpack %.256q: %w", h.Name, err)
		}
	}
}

// local is a name of an archive as one below the directory.
func local(name string) (string, error) {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("the archive has the name %.256q: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// write makes what an entry describes. What is there is replaced, but for a
// directory, and for a file, which is written over.
func write(dir *os.Root, name string, h *tar.Header, content io.Reader) error {
	if name == "" { // the directory itself
		return nil
	}
	if err := dir.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	there, err := dir.Lstat(name)
	if err == nil && !there.IsDir() && (!there.Mode().IsRegular() || h.Typeflag != tar.TypeReg) {
		if err := dir.Remove(name); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := dir.Mkdir(name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg:
		// It can have become something else meanwhile, at which nobody shall wait.
		f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return dir.Symlink(h.Linkname, name)
	case tar.TypeLink:
		to, err := local(h.Linkname)
		if err != nil {
			return err
		}
		return dir.Link(to, name)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("an entry of type %q, only files, directories and links are written: %w", h.Typeflag, errdefs.ErrNotImplemented)
}

// own gives what was written its owner, mode and time.
func own(dir *os.Root, name string, h *tar.Header, owners bool) error {
	if name == "" || h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	uid, gid := 0, 0
	if owners {
		uid, gid = h.Uid, h.Gid
	}
	if err := dir.Lchown(name, uid, gid); err != nil || h.Typeflag == tar.TypeSymlink {
		return err
	}
	// After the owner, whose change takes away the bits of set-uid programs.
	const bits = os.ModePerm | os.ModeSetuid | os.ModeSetgid | os.ModeSticky
	if err := dir.Chmod(name, h.FileInfo().Mode()&bits); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return nil // its time is that of what is written to it next
	}
	return dir.Chtimes(name, h.ModTime, h.ModTime)
}
