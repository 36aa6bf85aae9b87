package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/verity"
)

// Mounted is a root filesystem that stands.
type Mounted struct {
	// Path is the root filesystem.
	Path string
	// Disks is how long the slowest disk kept its layer waiting, Rest how long
	// everything else of Mount took.
	Disks, Rest time.Duration

	undo undo
	lost error // what could not be written back
}

// Mount waits for the disks, mounts the layers side by side below
// base/<id>/multi-layer and joins them at RootfsPath. On an error everything is
// taken down again; a layer that does not match its hash tree gives
// errdefs.ErrDataLoss. The waits are bounded by ctx; the mount calls are not.
func (r Rootfs) Mount(ctx context.Context, base string, system System) (_ *Mounted, err error) {
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
	if err := loadModules(ctx, layers, system.Modules); err != nil {
		return nil, err
	}
	if err := m.mountLayers(ctx, layers, system); err != nil {
		return nil, err
	}
	for _, d := range r.Mkdirs {
		if err := d.make(layers[d.Layer].at); err != nil {
			return nil, err
		}
	}
	switch {
	case r.Upper != nil:
		err = m.joinLayers(layers[0].at, layers[1:])
	case len(layers) == 1:
		err = m.bindLower(layers[0].at)
	default:
		err = m.joinLowers(layers)
	}
	if err == nil {
		err = m.mountShare(ctx, r.Share, SharePath(base, r.ID), system.Modules)
	}
	if err != nil {
		return nil, err
	}
	m.Rest = time.Since(begun) - m.Disks
	return m, nil
}

// placed is a layer, whose it is, and where it is mounted.
type placed struct {
	Layer
	container string
	at        string
}

// layers lists the layers in the order of Mkdir.Layer: the upper one, then the
// lowers from the top.
func (r Rootfs) layers(dir string) []placed {
	var all []placed
	if r.Upper != nil {
		all = append(all, placed{*r.Upper, r.ID, filepath.Join(dir, "upper")})
	}
	for i, l := range r.Lowers {
		all = append(all, placed{l, r.ID, filepath.Join(dir, "lower-"+strconv.Itoa(i))})
	}
	return all
}

// loadModules loads what these layers need and other pods do not.
func loadModules(ctx context.Context, layers []placed, modules Modules) error {
	loaded := map[string]bool{}
	for _, l := range layers {
		for _, stage := range l.stages() {
			if loaded[stage] {
				continue
			}
			if err := modules.Load(ctx, stage); err != nil {
				return fmt.Errorf("prepare for %s: %w", l, err)
			}
			loaded[stage] = true
		}
	}
	return nil
}

// standing is how far the mount of a layer came.
type standing struct {
	waited time.Duration // for its disk
	undo   undo
}

// atOnce is how many layers are mounted, or taken down, at the same time.
const atOnce = 16

// mountLayers mounts all layers at the same time: each waits for its own disk,
// and the kernel reads their superblocks side by side.
func (m *Mounted) mountLayers(ctx context.Context, layers []placed, system System) error {
	for _, l := range layers {
		if err := m.mkdir(l.at); err != nil {
			return err
		}
	}
	stands := make([]standing, len(layers))
	m.undo.push("take the layers down", func() error { return takeDown(stands) })
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, l := range layers {
		group.Go(func() error { return m.mountLayer(ctx, l, system, &stands[i]) })
	}
	err := group.Wait()
	for _, s := range stands {
		m.Disks = max(m.Disks, s.waited)
	}
	return err
}

// takeDown undoes the mounts of layers side by side: each waits for the kernel
// to let go of it. It goes on after an error, and leaves what failed for the
// next call.
func takeDown(stands []standing) error {
	errs := make([]error, len(stands))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i := range stands {
		group.Go(func() error {
			errs[i] = stands[i].undo.run()
			return nil
		})
	}
	_ = group.Wait()
	return errors.Join(errs...)
}

// mountLayer mounts a layer, and leaves in s how to take it down, also after an
// error.
func (m *Mounted) mountLayer(ctx context.Context, l placed, system System, s *standing) error {
	if err := ctx.Err(); err != nil { // another layer failed, or it is too late
		return fmt.Errorf("%s: %w", l, err)
	}
	source := l.FSType // all that a filesystem in memory has for a name
	corrupt := func() error { return nil }
	if !l.inMemory() {
		begun := time.Now()
		node, err := system.Disks.Find(ctx, l.Disk)
		if err != nil {
			return err
		}
		source, s.waited = node, time.Since(begun)
	}
	if l.Verity != nil {
		dev, err := system.Verity.Open(verity.Layer{Container: l.container, Disk: l.Disk, Node: source, Tree: *l.Verity})
		if err != nil {
			return err
		}
		s.undo.push("close "+l.String(), dev.Close)
		source, corrupt = dev.Node(), dev.Corrupt
	}
	if err := mountFS(l.FSType, append([]string{"source=" + source}, l.super...), l.attrs, l.at); err != nil {
		if why := corrupt(); why != nil {
			return fmt.Errorf("%w: %w", why, err)
		}
		return fmt.Errorf("%s: %w", l, err)
	}
	s.undo.push("unmount "+l.at, func() error { return m.unmountLayer(l) })
	return nil
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
	return m.overlay(lowers, 0, "upperdir="+upper+"/upper", "workdir="+upper+"/work")
}

// joinLowers mounts an overlay that has no upper layer.
func (m *Mounted) joinLowers(lowers []placed) error {
	return m.overlay(lowers, unix.MOUNT_ATTR_RDONLY, "ro")
}

// overlay mounts the lowers, the topmost first, at the root filesystem. The
// kernel is told of each by itself, "lowerdir+", since Linux 6.8.
func (m *Mounted) overlay(lowers []placed, attrs int, options ...string) error {
	super := make([]string, 0, len(lowers)+len(options)+1)
	for _, l := range lowers {
		super = append(super, "lowerdir+="+l.at)
	}
	super = append(append(super, options...), "source=overlay")
	if err := mountFS("overlay", super, attrs, m.Path); err != nil {
		return err
	}
	m.undo.push("unmount "+m.Path, func() error { return unmount(m.Path) })
	return nil
}

// bindLower makes the only layer the root filesystem, read-only.
func (m *Mounted) bindLower(lower string) error {
	if err := bind(lower, m.Path, unix.MOUNT_ATTR_RDONLY); err != nil {
		return err
	}
	m.undo.push("unmount "+m.Path, func() error { return unmount(m.Path) })
	return nil
}

// mkdir makes a directory that must not be there yet: what a container left
// behind is not taken over by the next.
func (m *Mounted) mkdir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("prepare rootfs: %w", err)
	}
	m.undo.push("remove "+path, func() error { return removeDir(path) })
	return nil
}

// unmountLayer unmounts a layer, a writable one after all of it is on its disk.
// The kernel does that at the last unmount, but this need not be the last: a
// container that is being made has this mount too, until it has left the
// agent's. What cannot be written back does not keep the layer mounted.
func (m *Mounted) unmountLayer(l placed) error {
	if !l.ReadOnly() && !l.inMemory() {
		if err := writeBack(l.at); err != nil {
			m.lost = fmt.Errorf("write back %s: %w", l, err)
		}
	}
	return unmount(l.at)
}

// Unmount takes everything down in reverse order. It stops at the first step
// that fails, since those below depend on it, names it, and can be called again
// to go on from there. What could not be written back to the upper layer's disk
// it says when all is down. One goroutine at a time may call it.
func (m *Mounted) Unmount() error {
	if err := m.undo.run(); err != nil {
		return err
	}
	lost := m.lost
	m.lost = nil
	return lost
}
