package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// file is one that is to be on the host.
type file struct {
	path    string
	mode    fs.FileMode
	content content
	// theirs is a file that people write themselves: if one is there that is not
	// ours, it stays, and nobody is asked.
	theirs bool
	// containerd reads it when it starts.
	containerd bool
}

// content opens what a file is to hold, each time anew: a guest's kernel is not
// held in memory.
type content func() (io.ReadCloser, error)

func fromFile(name string) content {
	return func() (io.ReadCloser, error) { return os.Open(name) }
}

func fromText(text []byte) content {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }
}

func (c content) sum() (string, error) {
	r, err := c()
	if err != nil {
		return "", err
	}
	defer r.Close()
	return sumOf(r)
}

func sumOf(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// sum is that of a file of the host, "" if there is none, and its mode. What is
// neither there nor a regular file is an error.
func (i *Installer) sum(name string) (string, fs.FileMode, error) {
	real, err := i.root.Real(name)
	if err != nil {
		return "", 0, err
	}
	info, err := os.Lstat(real)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", 0, nil
	case err != nil:
		return "", 0, err
	case !info.Mode().IsRegular():
		return "", 0, fmt.Errorf("%s is not a regular file: remove it", name)
	}
	f, err := os.Open(real)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	sum, err := sumOf(f)
	return sum, info.Mode().Perm(), err
}

// temporary is what names begin with that are not in place yet; a run that was
// killed leaves one.
const temporary = ".erofsvm-"

// write puts a file in place: under a temporary name first, on the disk before it
// is renamed.
func (i *Installer) write(name string, mode fs.FileMode, c content) (err error) {
	real, err := i.root.Real(name)
	if err != nil {
		return err
	}
	r, err := c()
	if err != nil {
		return err
	}
	defer r.Close()
	dir := filepath.Dir(real)
	f, err := os.CreateTemp(dir, temporary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(f.Name()))
		}
	}()
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), real); err != nil {
		return err
	}
	return syncDir(dir)
}

// remove takes a file away; one that is gone is no error.
func (i *Installer) remove(name string) error {
	real, err := i.root.Real(name)
	if err != nil {
		return err
	}
	if err := os.Remove(real); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(real))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// missingDirs are the directories above a file that are not there, the outermost
// first.
func (i *Installer) missingDirs(name string) (dirs []string, err error) {
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		info, err := i.root.Stat(dir)
		switch {
		case err == nil && info.IsDir():
			return dirs, nil
		case err == nil:
			return nil, fmt.Errorf("%s is not a directory", dir)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		dirs = append([]string{dir}, dirs...)
	}
	return dirs, nil
}

// makeDir makes one directory.
func (i *Installer) makeDir(name string) error {
	real, err := i.root.Real(name)
	if err != nil {
		return err
	}
	if err := os.Mkdir(real, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// removeDir takes an empty directory away, and leaves one that is not.
func (i *Installer) removeDir(name string) error {
	real, err := i.root.Real(name)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(real)
	if errors.Is(err, fs.ErrNotExist) || len(entries) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(real)
}
