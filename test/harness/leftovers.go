package harness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// recheck is how often Leftovers looks again while something is left. What it
// looks for has no event in common, and most of it none at all.
const recheck = 50 * time.Millisecond

// Leftovers waits until nothing that descends from the daemon is left: no
// process, mount, loop device, socket, file of the shim or of containerd's
// bundles, active snapshot, container. It is for the time when no container is
// meant to run. What is still there when ctx ends it returns, one line each.
func (c *Containerd) Leftovers(ctx context.Context) ([]string, error) {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		left, err := c.look(ctx)
		if err != nil || len(left) == 0 {
			return left, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return left, nil
		}
	}
}

func (c *Containerd) look(ctx context.Context) ([]string, error) {
	pids, err := c.group.waitEmpty(ctx, c.Pid())
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	var left []string
	if len(pids) > 0 {
		left = append(left, "processes: "+describe(pids))
	}
	for _, look := range []struct {
		what string
		find func() ([]string, error)
	}{
		{"mount", func() ([]string, error) { return mountsBelow(c.dirs.base, c.dirs.run) }},
		{"loop device of", func() ([]string, error) { return loopsBelow(c.dirs.base) }},
		{"socket", c.strangeSockets},
		{"dead shim socket", func() ([]string, error) { return c.deadShimSockets() }},
		{"file of the shim", func() ([]string, error) { return entries(c.dirs.sandboxes) }},
		{"bundle", func() ([]string, error) {
			return entries(filepath.Join(c.dirs.state, "io.containerd.runtime.v2.task", c.namespace()))
		}},
		{"working directory", func() ([]string, error) {
			return entries(filepath.Join(c.tasks(), c.namespace()))
		}},
		{"bundle of a pod", func() ([]string, error) {
			return entries(filepath.Join(c.dirs.state, "io.containerd.sandbox.controller.v1.shim", c.namespace()))
		}},
		{"active snapshot", func() ([]string, error) { return c.activeSnapshots(context.WithoutCancel(ctx)) }},
		{"container", func() ([]string, error) { return c.containers(context.WithoutCancel(ctx)) }},
	} {
		found, err := look.find()
		if err != nil {
			return nil, fmt.Errorf("look for a %s: %w", look.what, err)
		}
		for _, one := range found {
			left = append(left, look.what+" "+one)
		}
	}
	return left, nil
}

// entries lists a directory; one that is not there is empty.
func entries(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, entry := range list {
		names = append(names, filepath.Join(dir, entry.Name()))
	}
	return names, err
}

// shimSockets is where containerd's helper library puts the shims' sockets,
// whatever the state directory of the daemon is (pkg/shim, socketRoot).
const shimSockets = "/run/containerd/s"

// deadShimSockets lists the sockets that were made since the daemon started and
// that nobody listens on any more. Those of other daemons, which share the
// directory, have a listener.
func (c *Containerd) deadShimSockets() ([]string, error) {
	all, err := entries(shimSockets)
	if err != nil {
		return nil, err
	}
	var dead []string
	for _, path := range all {
		info, err := os.Lstat(path)
		if err != nil || info.ModTime().Before(c.started) {
			continue
		}
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			conn.Close()
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			dead = append(dead, path)
		}
	}
	return dead, nil
}

func mountsBelow(dirs ...string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		for _, dir := range dirs {
			if strings.HasPrefix(info.Mountpoint, dir+"/") {
				return false, false
			}
		}
		return true, false
	})
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points, err
}

func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil || dir == "" {
		return err
	}
	var errs []error
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", points[i], err))
		}
	}
	return errors.Join(errs...)
}

// loopsBelow lists the files below dir that a loop device holds.
func loopsBelow(dir string) ([]string, error) {
	attributes, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var files []string
	for _, attribute := range attributes {
		text, err := os.ReadFile(attribute)
		if err != nil {
			continue // detached in between
		}
		if file := strings.TrimSpace(string(text)); strings.HasPrefix(file, dir+"/") {
			files = append(files, file)
		}
	}
	return files, nil
}

// strangeSockets lists the Unix sockets below the run directory that are not
// the daemon's own.
func (c *Containerd) strangeSockets() ([]string, error) {
	var found []string
	err := filepath.WalkDir(c.dirs.run, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		own := path == c.dirs.socket || path == c.dirs.socket+".ttrpc" || filepath.Base(path) == "notify"
		if entry.Type() == fs.ModeSocket && !own {
			found = append(found, path)
		}
		return nil
	})
	return found, err
}

func (c *Containerd) activeSnapshots(ctx context.Context) ([]string, error) {
	var active []string
	err := c.client.SnapshotService(Snapshotter).Walk(c.in(ctx), func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			active = append(active, info.Name)
		}
		return nil
	})
	return active, err
}

func (c *Containerd) containers(ctx context.Context) ([]string, error) {
	list, err := c.client.Containers(c.in(ctx))
	var ids []string
	for _, one := range list {
		ids = append(ids, one.ID())
	}
	return ids, err
}
