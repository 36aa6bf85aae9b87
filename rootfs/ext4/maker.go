package ext4

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/erofsvm/erofsvm/rootfs/files"
)

// Errors that Make wraps.
var (
	// ErrTool is an mkfs.ext4 that is missing or cannot be run.
	ErrTool = errors.New("mkfs.ext4 cannot be used")
	// ErrMake is a run of mkfs.ext4 that failed, or made what is of no use.
	ErrMake = errors.New("mkfs.ext4 failed")
)

// Format is a filesystem to be made.
type Format struct {
	FS   string    `json:"fs"`    // ext4
	Size int64     `json:"bytes"` // of the image, a multiple of 512
	UUID uuid.UUID `json:"uuid"`  // of the filesystem; the zero UUID has one made up
	// JournalMiB is the size of the journal, 4 or more; 0 leaves it to mkfs.ext4, as
	// does an image of less than 16 times as much. That takes 128 MiB of an image of
	// 16 GiB, all of which become blocks of the host's disk in the end, however little
	// is in the image.
	JournalMiB int `json:"journalMiB,omitempty"`
}

// Maker makes images. Its fields are set before its first use; after that it may
// be used from any goroutine.
type Maker struct {
	// Mkfs is the path of mkfs.ext4, from e2fsprogs 1.43 or newer; a bare name
	// is looked up in PATH. It runs once for each size.
	Mkfs string
	// Dir is where the templates are kept, an absolute path. It is made when it
	// is needed, may be shared between processes, and must be on a filesystem
	// with O_TMPFILE.
	Dir string
}

// Make makes a sparse image at path, open for reading and writing, and the
// caller's to close. It appears whole or not at all, on the disk as well as to
// other processes, with mode 0600.
//
// A file that is there already is never touched: the error wraps os.ErrExist,
// and of several calls at once for one path all but one get it. None of them is
// given the other's image, since an image is one container's to write to.
//
// Errors name path or mkfs.ext4, and wrap ErrTool, ErrMake or that of the
// system. The context bounds a run of mkfs.ext4 and the copying.
func (m Maker) Make(ctx context.Context, path string, format Format) (*os.File, error) {
	if format.FS != "ext4" || format.Size <= 0 || format.Size%sectorSize != 0 {
		return nil, fmt.Errorf("make writable image %q: %s of %d bytes: only ext4 is made, and only of whole sectors", path, format.FS, format.Size)
	}
	// Publish finds out again; here it saves the work.
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("make writable image: %w", &os.PathError{Op: "create", Path: path, Err: os.ErrExist})
	}
	image, err := files.Nameless(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("make writable image %q: %w", path, err)
	}
	if err := m.make(ctx, image, path, format); err != nil {
		return nil, errors.Join(fmt.Errorf("make writable image %q: %w", path, err), image.Close())
	}
	return image, nil
}

func (m Maker) make(ctx context.Context, image *os.File, path string, format Format) error {
	if err := m.clone(ctx, image, format); err != nil {
		return err
	}
	id := identity{uuid: format.UUID}
	if id.uuid == uuid.Nil {
		id.uuid = uuid.New()
	}
	rand.Read(id.hashSeed[:])
	if err := id.write(image); err != nil {
		return fmt.Errorf("%w: its filesystem %w", ErrMake, err)
	}
	if err := image.Sync(); err != nil {
		return err
	}
	return files.Publish(image, path, false)
}

// clone fills image with what the template of that size holds. There may be
// none yet, or one that is of no use.
func (m Maker) clone(ctx context.Context, image *os.File, format Format) error {
	t, err := m.template(format)
	if err != nil {
		return err
	}
	err = t.copyTo(ctx, image)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if err := t.build(ctx, !errors.Is(err, os.ErrNotExist)); err != nil {
		return err
	}
	return t.copyTo(ctx, image)
}
