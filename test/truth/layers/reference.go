package layers

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
)

// Reference is a chain of layers as containerd's overlayfs snapshotter unpacks
// it: a directory for each layer, and an overlay of the host over them.
type Reference struct {
	dirs []string // the oldest first
	base string
}

// Unpack unpacks the tars, the oldest first, below dir, with containerd's own
// code and as its overlay differ calls it (core/diff/apply/apply_linux.go).
func Unpack(ctx context.Context, dir string, tars [][]byte) (*Reference, error) {
	r := &Reference{base: dir}
	for i, tar := range tars {
		at := filepath.Join(dir, fmt.Sprint(i))
		if err := os.MkdirAll(at, 0o755); err != nil {
			return nil, err
		}
		_, err := archive.Apply(ctx, at, bytes.NewReader(tar),
			archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(reversed(r.dirs)))
		if err != nil {
			return nil, fmt.Errorf("unpack layer %d: %w", i, err)
		}
		r.dirs = append(r.dirs, at)
	}
	return r, nil
}

// Active calls see with the root of the lowest n layers below an empty writable
// layer.
func (r *Reference) Active(ctx context.Context, n int, see func(root string) error) error {
	upper, err := os.MkdirTemp(r.base, "upper")
	if err != nil {
		return err
	}
	defer os.RemoveAll(upper)
	// The mode that the snapshotter gives both.
	for _, dir := range []string{"fs", "work"} {
		if err := os.Mkdir(filepath.Join(upper, dir), 0o755); err != nil {
			return err
		}
	}
	if n == 0 {
		return see(filepath.Join(upper, "fs"))
	}
	return r.overlay(ctx, n, see, "upperdir="+filepath.Join(upper, "fs"), "workdir="+filepath.Join(upper, "work"))
}

// View calls see with the root of the lowest n layers by themselves.
func (r *Reference) View(ctx context.Context, n int, see func(root string) error) error {
	if n == 1 {
		return see(r.dirs[0])
	}
	return r.overlay(ctx, n, see)
}

func (r *Reference) overlay(ctx context.Context, n int, see func(root string) error, options ...string) error {
	options = append(options, "lowerdir="+strings.Join(reversed(r.dirs[:n]), ":"))
	return mount.WithTempMount(ctx, []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, see)
}
