package merge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/files"
)

// emptyName is the file of the cache that has erofs.Empty.
const emptyName = "empty.erofs"

// Empty returns an image with nothing in it, which is put into the cache if it
// is not there, or not what it should be. Like an fsmeta it is never written to
// again, and is the caller's to close.
func (b *Builder) Empty() (*erofs.Image, error) {
	path, want := filepath.Join(b.dir, emptyName), erofs.Empty()
	if image, err := readEmpty(path, want); err == nil {
		return image, nil
	}
	if err := b.putEmpty(path, want); err != nil {
		return nil, fmt.Errorf("empty layer %q: %w", path, err)
	}
	return readEmpty(path, want)
}

// readEmpty opens the image and compares it with what it should be.
func readEmpty(path string, want []byte) (image *erofs.Image, err error) {
	f, err := files.Open(path, files.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	got := make([]byte, len(want)+1)
	if n, err := f.ReadAt(got, 0); err != io.EOF || !bytes.Equal(got[:n], want) {
		return nil, fmt.Errorf("%q: %w: it is not what was put there", path, errors.Join(errCorrupt, err))
	}
	return erofs.Inspect(f)
}

func (b *Builder) putEmpty(path string, image []byte) error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	f, err := files.Nameless(b.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(image); err != nil {
		return err
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return files.Publish(f, path, true)
}
