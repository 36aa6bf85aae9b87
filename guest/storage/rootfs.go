package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Finder returns the device node of a disk, and waits for it until ctx ends.
type Finder interface {
	Find(ctx context.Context, source string) (string, error)
}

// Mounted is a root filesystem that stands.
type Mounted struct {
	// Path is the root filesystem.
	Path string
	// Disks is how long the last disk kept the mounts waiting, Rest how long
	// everything else of Mount took.
	Disks, Rest time.Duration

	undo []undo
}

type undo struct {
	what string
	do   func() error
}

// Mount waits for the disks, mounts the layers side by side below
// base/<id>/multi-layer and joins them at RootfsPath. On an error everything is
// taken down again. The wait is bounded by ctx; the mount calls are not.
func (r Rootfs) Mount(ctx context.Context, base string, find Finder) (_ *Mounted, err error) {
	begun := time.Now()
	m := &Mounted{Path: RootfsPath(base, r.ID)}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Unmount())
		}
	}()

	layersDir := filepath.Join(base, r.ID, "multi-layer")
	for _, dir := range []string{filepath.Join(base, r.ID), layersDir, m.Path} {
		if err := m.mkdir(dir); err != nil {
			return nil, err
		}
	}

	layers := r.layers(layersDir)
	if err := m.mountLayers(ctx, layers, find); err != nil {
		return nil, err
	}
	for _, d := range r.Mkdirs {
		if err := d.make(layers[d.Layer].at); err != nil {
			return nil, err
		}
	}
	if r.Upper == nil {
		err = m.bindLower(layers[0].at)
	} else {
		err = m.joinLayers(layers[0].at, layers[1:])
	}
	if err != nil {
		return nil, err
	}
	m.Rest = time.Since(begun) - m.Disks
	return m, nil
}

// placed is a layer and where it is mounted.
type placed struct {
	Layer
	at string
}

// layers lists the layers in the order of Mkdir.Layer: the upper one, then the
// lowers from the top.
func (r Rootfs) layers(dir string) []placed {
	var all []placed
	if r.Upper != nil {
		all = append(all, placed{*r.Upper, filepath.Join(dir, "upper")})
	}
	for i, l := range r.Lowers {
		all = append(all, placed{l, filepath.Join(dir, "lower-"+strconv.Itoa(i))})
	}
	return all
}

// mountLayers mounts all layers at the same time: each waits for its own disk,
// and the kernel reads their superblocks side by side.
func (m *Mounted) mountLayers(ctx context.Context, layers []placed, find Finder) error {
	for _, l := range layers {
		if err := m.mkdir(l.at); err != nil {
			return err
		}
	}
	begun := time.Now()
	mounted, waited := make([]bool, len(layers)), make([]time.Duration, len(layers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i, l := range layers {
		group.Go(func() error {
			disk, err := find.Find(ctx, l.Source)
			if err != nil {
				return err
			}
			waited[i] = time.Since(begun)
			super := append([]string{"source=" + disk}, l.super...)
			if err := mountFS(l.FSType, super, l.attrs, l.at); err != nil {
				return fmt.Errorf("disk %s: %w", l.Source, err)
			}
			mounted[i] = true
			return nil
		})
	}
	err := group.Wait()
	m.Disks = slices.Max(waited)
	for i, l := range layers {
		if mounted[i] {
			m.push("unmount "+l.at, func() error { return unmount(l.at) })
		}
	}
	return err
}

// joinLayers mounts the overlay. Its upper and work directories are those that
// the protocol fixes, "upper" and "work" at the root of the upper layer.
func (m *Mounted) joinLayers(upper string, lowers []placed) error {
	for _, name := range []string{"upper", "work"} {
		d := Mkdir{Path: []string{name}, Mode: 0o755, UID: -1, GID: -1}
		if err := d.make(upper); err != nil {
			return err
		}
	}
	super := make([]string, 0, len(lowers)+3)
	for _, l := range lowers {
		super = append(super, "lowerdir+="+l.at)
	}
	super = append(super, "upperdir="+upper+"/upper", "workdir="+upper+"/work", "source=overlay")
	if err := mountFS("overlay", super, 0, m.Path); err != nil {
		return err
	}
	m.push("unmount "+m.Path, func() error { return unmount(m.Path) })
	return nil
}

// bindLower makes the only layer the root filesystem, read-only.
func (m *Mounted) bindLower(lower string) error {
	if err := bind(lower, m.Path, unix.MOUNT_ATTR_RDONLY); err != nil {
		return err
	}
	m.push("unmount "+m.Path, func() error { return unmount(m.Path) })
	return nil
}

// mkdir makes a directory that must not be there yet: what a container left
// behind is not taken over by the next.
func (m *Mounted) mkdir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("prepare rootfs: %w", err)
	}
	m.push("remove "+path, func() error { return removeDir(path) })
	return nil
}

func (m *Mounted) push(what string, do func() error) { m.undo = append(m.undo, undo{what, do}) }

// Unmount takes everything down in reverse order. It stops at the first step
// that fails, since those below depend on it, names it, and can be called again
// to go on from there. One goroutine at a time may call it.
func (m *Mounted) Unmount() error {
	for len(m.undo) > 0 {
		last := m.undo[len(m.undo)-1]
		if err := last.do(); err != nil {
			return fmt.Errorf("%s: %w", last.what, err)
		}
		m.undo = m.undo[:len(m.undo)-1]
	}
	return nil
}
