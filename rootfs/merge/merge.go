// Package merge makes of several EROFS layers one index of their union, an
// fsmeta, with mkfs.erofs, and keeps it in a cache directory.
//
// It owns the cache directory and the runs of mkfs.erofs. A Builder may be used
// from any goroutine, and several processes may share a directory: an entry
// appears whole or not at all, under a name that says what it was made of. When
// one is added, those that were not used for the longest are removed until the
// rest keeps to the limit. The package never writes to a layer.
package merge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/internal/tool"
)

// Errors that Fsmeta wraps.
var (
	// ErrIneligible is a set of layers that cannot be merged.
	ErrIneligible = errors.New("layers cannot be merged")
	// ErrTool is an mkfs.erofs that is missing or too old.
	ErrTool = errors.New("mkfs.erofs cannot be used")
	// ErrBuild is a run of mkfs.erofs that failed.
	ErrBuild = errors.New("mkfs.erofs failed")
)

// MaxLayers is the most layers that one fsmeta is made of: each is an argument
// of mkfs.erofs and a slot of the device table.
const MaxLayers = 1000

// Builder makes fsmetas. Its fields are set once, by New.
type Builder struct {
	mkfs  string // path of mkfs.erofs, or a name to look up in PATH
	dir   string // of the cache
	limit int64  // of the cache, in bytes

	mu    sync.Mutex
	known tool.State // the mkfs.erofs whose version has been found good
}

// DefaultLimit is how large a cache may be, in bytes: an fsmeta has a few
// percent of its layers' length.
const DefaultLimit = 1 << 30

// New returns a Builder that runs the mkfs.erofs at the given path (a bare
// name is looked up in PATH) and keeps its results below dir, which is made
// when it is needed. Neither is touched before the first call of Fsmeta. The
// limit of the cache is in bytes; 0 is DefaultLimit.
func New(mkfs, dir string, limit int64) *Builder {
	if limit == 0 {
		limit = DefaultLimit
	}
	return &Builder{mkfs: mkfs, dir: dir, limit: limit}
}

// Result is an fsmeta and how it came about.
type Result struct {
	Meta  *erofs.Image
	Built bool // false if it was in the cache
	// Trim is why the cache could not be kept to its limit after a build, nil
	// if it could. The fsmeta is good all the same.
	Trim error
}

// Fsmeta returns the index of the union of the layers, which are given with
// the topmost last. Its device table names them in that order, and has been
// checked against them. It is open, and the caller's to close. In the cache it
// is never written to again, and stays there as long as anybody has it open and
// for at least ten minutes. The context bounds a run of mkfs.erofs, which reads
// the layers from the descriptors that they have here.
func (b *Builder) Fsmeta(ctx context.Context, layers []*erofs.Image) (*Result, error) {
	if err := eligible(layers); err != nil {
		return nil, err
	}
	mkfs, err := findTool(b.mkfs)
	if err != nil {
		return nil, err
	}
	key := keyOf(mkfs, layers)
	path := filepath.Join(b.dir, hex.EncodeToString(key[:])+suffix)

	meta, err := readEntry(path, key, layers)
	if err == nil {
		return &Result{Meta: meta}, nil
	}
	corrupt := !errors.Is(err, os.ErrNotExist)

	if err := b.checkVersion(ctx, mkfs); err != nil {
		return nil, err
	}
	if err := checkRevived(ctx, layers); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("fsmeta cache: %w", err)
	}
	if err := build(ctx, mkfs, path, key, layers, corrupt); err != nil {
		return nil, err
	}
	if meta, err = readEntry(path, key, layers); err != nil {
		return nil, fmt.Errorf("fsmeta that was just made: %w", err)
	}
	return &Result{Meta: meta, Built: true, Trim: trim(b.dir, b.limit, time.Now())}, nil
}

// eligible refuses what mkfs.erofs would merge without complaint into an image
// that is wrong, and sets that it would read for long to no avail. The rest it
// refuses itself, with its own words.
func eligible(layers []*erofs.Image) error {
	if len(layers) < 2 || len(layers) > MaxLayers {
		return fmt.Errorf("%w: there are %d, 2 to %d are possible", ErrIneligible, len(layers), MaxLayers)
	}
	first := layers[0]
	for _, l := range layers {
		if len(l.Super.Devices) != 0 && !l.TarIndex() {
			return fmt.Errorf("%w: %q has %d devices of its own", ErrIneligible, l.Path, len(l.Super.Devices))
		}
		if l.Super.BlockSize != first.Super.BlockSize {
			return fmt.Errorf("%w: %q has blocks of %d bytes, but %q of %d; pull the image again with one -b in the mkfs_options of containerd's erofs differ",
				ErrIneligible, first.Path, first.Super.BlockSize, l.Path, l.Super.BlockSize)
		}
	}
	return nil
}

// keyOf names an fsmeta by what it is made of: the state of every layer file,
// in order, and of the mkfs.erofs that is to read them. The latter stands for
// the version, which then has to be asked for only when something is built.
func keyOf(mkfs tool.State, layers []*erofs.Image) [sha256.Size]byte {
	text := fmt.Appendf(nil, "erofsvm fsmeta 1\nmkfs %d %d %d %d\n", mkfs.Dev, mkfs.Inode, mkfs.Size, mkfs.ModTime.UnixNano())
	text = slices.Grow(text, 128*len(layers))
	for _, l := range layers {
		text = append(text, "layer"...)
		for _, n := range []int64{int64(l.Dev), int64(l.Inode), l.Size, l.ModTime.UnixNano()} {
			text = strconv.AppendInt(append(text, ' '), n, 10)
		}
		text = append(hex.AppendEncode(append(text, ' '), l.Super.UUID[:]), '\n')
	}
	return sha256.Sum256(text)
}
