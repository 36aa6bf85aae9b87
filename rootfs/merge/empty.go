package merge

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
)

// emptyName is the file of the cache that has erofs.Empty.
const emptyName = "empty.erofs"

// Empty returns an image with nothing in it, which is put into the cache if it
// is not there, or not what it should be. Like an fsmeta it is never written to
// again.
func (b *Builder) Empty() (*erofs.Image, error) {
	path, want := filepath.Join(b.dir, emptyName), erofs.Empty()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		if err := b.putEmpty(path, want); err != nil {
			return nil, fmt.Errorf("empty layer %q: %w", path, err)
		}
	}
	return erofs.Inspect(path)
}

func (b *Builder) putEmpty(path string, image []byte) error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	f, err := nameless(b.dir)
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
	return publish(f, path, true)
}
