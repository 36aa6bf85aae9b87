package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
)

var errNoPartitions = fmt.Errorf("the guest cannot find layers in partitions: %w", errdefs.ErrNotImplemented)

// check refuses options that contradict each other.
func (o *Options) check() error {
	if o.MemoryUpper < 0 || o.MemoryUpper > maxMemoryUpper {
		return fmt.Errorf("a writable layer of %d bytes in guest memory: %w", o.MemoryUpper, errdefs.ErrInvalidArgument)
	}
	switch o.Layers {
	case LayersAuto, LayersMerge:
		return nil
	case LayersPartition:
		if o.Partitions {
			return nil
		}
		return fmt.Errorf("layers = %q: %w", o.Layers, errNoPartitions)
	}
	return fmt.Errorf("layers = %q is not known (%s, %s, %s are): %w", o.Layers, LayersAuto, LayersMerge, LayersPartition, errdefs.ErrInvalidArgument)
}

// maxMemoryUpper is far above any guest's memory.
const maxMemoryUpper = 1 << 44

// allow refuses what Classify understands but the options do not allow, because
// the runtime or the guest cannot do its part.
func (o *Options) allow(layout *Layout) error {
	if layout.Upper != nil {
		if err := o.allowUpper(layout.Upper); err != nil {
			return err
		}
	}
	for _, l := range layout.Lowers {
		if l.Verity == "" {
			continue
		}
		if !o.Partitions {
			return l.at.refuse(ClassVerity, optVerity+l.Verity, "layers with dm-verity are not handled; "+
				`set dmverity_mode = "off" in [plugins."io.containerd.snapshotter.v1.erofs"] and enable_dmverity = false in [plugins."io.containerd.differ.v1.erofs"], and pull the image again`)
		}
		if o.Layers == LayersMerge {
			return l.at.refuse(ClassVerity, optVerity+l.Verity, `a merged layer would lose its protection by dm-verity; set layers = "auto" in the configuration`)
		}
	}
	return nil
}

// allowUpper looks at what is there of the writable layer: an image that is to
// be made may be there already, and a directory of the host must be empty, as
// the guest does not see what it holds.
func (o *Options) allowUpper(u *Upper) error {
	switch {
	case u.HostDir != "" && o.MemoryUpper == 0:
		return u.at.refuse(ClassHostUpper, "upperdir="+u.HostDir, "the writable layer is a directory of the host, which is not shared with the VM; "+
			`set default_size (say "64M") in [plugins."io.containerd.snapshotter.v1.erofs"] of containerd's configuration, `+
			"so that the snapshotter makes a block image, and recreate the container")
	case u.HostDir != "":
		name, err := anyName(u.HostDir)
		if err != nil {
			return fmt.Errorf("writable layer: %w", err)
		}
		if name != "" {
			return u.at.refuse(ClassHostUpper, "upperdir="+u.HostDir, "the writable layer is a directory of the host that holds %s already, which the VM would not see; "+
				`set default_size (say "64M") in [plugins."io.containerd.snapshotter.v1.erofs"] of containerd's configuration, and recreate the container`, printable(name))
		}
	case u.Format != nil && !o.MakeUpper:
		if _, err := os.Lstat(u.Path); errors.Is(err, os.ErrNotExist) {
			return u.at.refuse(ClassMkfs, "", "the writable image is still to be made, which is not handled; leave mkfs out of the runtime's mount claims, "+
				"and keep the snapshotter's root_path below containerd's root, where containerd makes it itself")
		}
	}
	return nil
}

// anyName is a name in the directory, "" if it is empty or not there.
func anyName(dir string) (string, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	switch names, err := f.Readdirnames(1); {
	case errors.Is(err, io.EOF):
		return "", nil
	case err != nil:
		return "", err
	default:
		return names[0], nil
	}
}
