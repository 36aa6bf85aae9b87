package ext4

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/rootfs/internal/tool"
)

// template is a file with a fresh filesystem of one size, of which images are
// copied. Behind the filesystem it has one sector with a mark and the checksum
// of what stands before it; see sum.
type template struct {
	mkfs tool.State
	path string
	size int64
	// options are those of mkfs.ext4 that differ between images.
	options []string
}

const (
	suffix   = ".ext4"
	sealMark = "erofsvm ext4\x00\x01"
	sealSize = sectorSize

	// mostTemplates is how many are kept. A host has as many sizes as its
	// snapshotter has settings, and a template of 100 GiB takes little more
	// than 1 MiB of the disk.
	mostTemplates = 32

	// configFile says which features mkfs.ext4 takes where its caller does not.
	configFile = "/etc/mke2fs.conf"
)

var errCorrupt = errors.New("template is corrupt")

// features make the checksums in the filesystem independent of its UUID, so that
// a copy can be given one of its own; Linux knows them since 4.4. The space that
// would be set aside for growing is up to 4 MiB of each copy, and no image grows.
// All other features are those of the host's mke2fs.conf, as containerd has them.
const features = "metadata_csum,metadata_csum_seed,^resize_inode"

// The file is new, so that it reads as zeros: inode tables and journal are not
// to be written, now or by the guest's kernel later. Only e2fsprogs 1.47 and
// newer can be told so; older ones leave the inode tables to the guest.
var (
	prezeroed = []string{"nodiscard", "root_owner=0:0", "assume_storage_prezeroed=1"}
	lazy      = []string{"nodiscard", "root_owner=0:0", "lazy_itable_init=1", "lazy_journal_init=1"}
)

// template is that for images of a size, whether it is there or not.
func (m Maker) template(format Format) (*template, error) {
	size := format.Size
	mkfs, err := tool.Find(m.Mkfs)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; install e2fsprogs, or set its path in the configuration", ErrTool, err)
	}
	key := fmt.Appendf(nil, "erofsvm ext4 1\nmkfs %d %d %d %d\nsize %d\n%s %v %v\n",
		mkfs.Dev, mkfs.Inode, mkfs.Size, mkfs.ModTime.UnixNano(), size, features, prezeroed, lazy)
	var options []string
	if format.JournalMiB > 0 && size/16 >= int64(format.JournalMiB)<<20 {
		options = []string{"-J", fmt.Sprint("size=", format.JournalMiB)}
		key = fmt.Appendf(key, "%v\n", options)
	}
	if info, err := os.Stat(configFile); err == nil {
		key = fmt.Appendf(key, "config %d %d\n", info.Size(), info.ModTime().UnixNano())
	}
	sum := sha256.Sum256(key)
	return &template{mkfs: mkfs, path: filepath.Join(m.Dir, hex.EncodeToString(sum[:])+suffix), size: size, options: options}, nil
}

// copyTo makes image what the template holds. The error wraps os.ErrNotExist if
// there is no template, and errCorrupt if it is of no use.
func (t *template) copyTo(ctx context.Context, image *os.File) error {
	from, err := files.OpenNoFollow(t.path, files.ReadOnly)
	if err != nil {
		return err
	}
	defer from.Close()
	if !from.Regular || from.Size != t.size+sealSize {
		return fmt.Errorf("%q: %w: %d bytes, want %d", t.path, errCorrupt, from.Size, t.size+sealSize)
	}
	if err := image.Truncate(0); err != nil {
		return err
	}
	if err := image.Truncate(t.size); err != nil {
		return err
	}
	sum, err := eachBlock(ctx, from.Handle(), t.size, func(block []byte, off int64) error {
		_, err := image.WriteAt(block, off)
		return err
	})
	if err != nil {
		return fmt.Errorf("copy %q: %w", t.path, err)
	}
	var last [sealSize]byte
	if _, err := from.ReadAt(last[:], t.size); err != nil {
		return err
	}
	if last != seal(sum) {
		return fmt.Errorf("%q: %w: the checksum is not that of the content", t.path, errCorrupt)
	}
	now := time.Now()
	_ = os.Chtimes(t.path, now, now) // who cannot mark it takes what is there
	return nil
}

// build makes the template. Of several builders at once the first one wins,
// unless replace says that what is there is of no use.
func (t *template) build(ctx context.Context, replace bool) error {
	dir := filepath.Dir(t.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("templates of ext4: %w", err)
	}
	f, err := files.Nameless(dir)
	if err != nil {
		return fmt.Errorf("templates of ext4: %w", err)
	}
	defer f.Close()
	if err := t.format(ctx, f); err != nil {
		return err
	}
	if err := sealFile(ctx, f, t.size); err != nil {
		return fmt.Errorf("templates of ext4 in %q: %w", dir, err)
	}
	if err := files.Publish(f, t.path, replace); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("templates of ext4: %w", err)
	}
	return trim(dir)
}

// format lets mkfs.ext4 make the filesystem, and checks that it can be copied.
func (t *template) format(ctx context.Context, f *os.File) error {
	err := t.run(ctx, f, prezeroed)
	if err != nil && ctx.Err() == nil {
		err = t.run(ctx, f, lazy)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMake, err)
	}
	s, err := readSuper(f)
	if err != nil {
		return fmt.Errorf("%w: the filesystem that %s made %w", ErrMake, t.mkfs.Path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != t.size || s.size > t.size {
		return fmt.Errorf("%w: %s made a file of %d bytes with a filesystem of %d, want %d", ErrMake, t.mkfs.Path, info.Size(), s.size, t.size)
	}
	return nil
}

func (t *template) run(ctx context.Context, f *os.File, extended []string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := f.Truncate(t.size); err != nil {
		return err
	}
	args := append([]string{"-q", "-t", "ext4", "-O", features, "-E", strings.Join(extended, ",")}, t.options...)
	_, err := tool.Run(ctx, t.mkfs.Path, []*os.File{f}, map[string]string{tool.Inherited(0): "the image"},
		append(args, tool.Inherited(0))...)
	return err
}

// sealFile ends a template with its seal and makes it read-only. It need not be
// on the disk: one that is torn when the machine loses its power has another
// checksum, and is made anew.
func sealFile(ctx context.Context, f *os.File, size int64) error {
	sum, err := eachBlock(ctx, f, size, func([]byte, int64) error { return nil })
	if err != nil {
		return err
	}
	last := seal(sum)
	if _, err := f.WriteAt(last[:], size); err != nil {
		return err
	}
	return f.Chmod(0o444)
}

// trim removes the templates that were not used for the longest. Who copies one
// meanwhile has it open.
func trim(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("templates of ext4: %w", err)
	}
	var all []os.FileInfo
	for _, e := range list {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), suffix) {
			all = append(all, info)
		}
	}
	slices.SortFunc(all, func(a, b os.FileInfo) int { return cmp.Compare(b.ModTime().UnixNano(), a.ModTime().UnixNano()) })
	for _, old := range all[min(len(all), mostTemplates):] {
		if err := os.Remove(filepath.Join(dir, old.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("templates of ext4: %w", err)
		}
	}
	return nil
}
