package merge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	goerofs "github.com/erofs/go-erofs"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
)

// Bounds of a walk: an image may hold a directory that is its own child.
const (
	maxDepth   = 200     // a path is looked up anew at each step down
	maxEntries = 4 << 20 // of all layers together
)

// overlayOpaque marks a directory that hides what lower layers have in it
// (Documentation/filesystems/overlayfs.rst).
const overlayOpaque = "trusted.overlay.opaque"

// node is what the layers below make of a path, as far as it matters: a
// directory, or what a layer has put over one.
type node struct {
	covered  string           // path of the layer with something else than a directory; "" for a directory
	children map[string]*node // of the directory, or of the covered one
}

// checkRevived refuses layers in which a directory is replaced by something else
// and made a directory again further up, each time without a whiteout.
// mkfs.erofs, up to 1.9.4 at least, joins the two directories as if nothing had
// been in between, so that files come back that an overlay does not show. Such
// layers are rare: of an image, three have to say something of one path.
func checkRevived(ctx context.Context, layers []*erofs.Image) error {
	w := &walk{ctx: ctx, left: maxEntries}
	root := &node{}
	for _, l := range layers {
		w.layer = l
		image, err := openImage(l)
		if err == nil {
			err = w.dir(image, ".", root, 0)
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return fmt.Errorf("look through layer %q: %w", l.Path, context.Cause(ctx))
		case errors.Is(err, ErrIneligible):
			return err
		default:
			return fmt.Errorf("%w: %q cannot be looked through: %w", ErrIneligible, l.Path, err)
		}
	}
	return nil
}

// openImage opens a layer for a look at its directories. The data of an index
// are in the same file, and not looked at.
func openImage(l *erofs.Image) (fs.ReadDirFS, error) {
	var options []goerofs.OpenOpt
	if l.TarIndex() {
		options = append(options, goerofs.WithExtraDevices(l.File))
	}
	image, err := goerofs.Open(io.NewSectionReader(l.File, 0, l.Size), options...)
	if err != nil {
		return nil, err
	}
	return image.(fs.ReadDirFS), nil
}

type walk struct {
	ctx   context.Context
	layer *erofs.Image
	left  int // entries that may still come
}

// dir walks the directory at name, of which the layers so far made n.
func (w *walk) dir(image fs.ReadDirFS, name string, n *node, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	entries, err := image.ReadDir(name)
	if err != nil {
		return err
	}
	if w.left -= len(entries); w.left < 0 || depth > maxDepth {
		return fmt.Errorf("%w: %q has too many files or directories to be looked through", ErrIneligible, w.layer.Path)
	}
	for _, e := range entries {
		at := path.Join(name, e.Name())
		below := n.children[e.Name()]
		if !e.IsDir() {
			if below == nil {
				continue
			}
			white, err := whiteout(e)
			if err != nil {
				return err
			}
			if white {
				delete(n.children, e.Name())
			} else if below.covered == "" {
				below.covered = w.layer.Path
			}
			continue
		}
		if below != nil {
			opaque, err := isOpaque(e)
			if err != nil {
				return err
			}
			if opaque {
				below = nil
			}
		}
		switch {
		case below == nil:
			below = &node{}
			if n.children == nil {
				n.children = make(map[string]*node)
			}
			n.children[e.Name()] = below
		case below.covered != "":
			return fmt.Errorf("%w: %q is a directory in %q again, after layer %q put something else in its place: mkfs.erofs would bring back what it held",
				ErrIneligible, "/"+at, w.layer.Path, below.covered)
		}
		if err := w.dir(image, at, below, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// whiteout says whether an entry is the character device 0:0 by which an
// overlay knows that something is deleted.
func whiteout(e fs.DirEntry) (bool, error) {
	if e.Type()&fs.ModeCharDevice == 0 {
		return false, nil
	}
	info, err := e.Info()
	if err != nil {
		return false, err
	}
	device, ok := info.(interface{ Rdev() uint64 })
	return ok && device.Rdev() == 0, nil
}

func isOpaque(e fs.DirEntry) (bool, error) {
	info, err := e.Info()
	if err != nil {
		return false, err
	}
	attributes, ok := info.(interface{ GetXattr(string) (string, bool) })
	if !ok {
		return false, nil
	}
	value, _ := attributes.GetXattr(overlayOpaque)
	return value == "y", nil
}
