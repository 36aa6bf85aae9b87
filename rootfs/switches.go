package rootfs

import (
	"fmt"

	"github.com/containerd/errdefs"
)

var errNoPartitions = fmt.Errorf("the guest cannot find layers in partitions: %w", errdefs.ErrNotImplemented)

// check refuses options that contradict each other.
func (o *Options) check() error {
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

// allow refuses what Classify understands but the options do not allow, because
// the runtime or the guest cannot do its part.
func (o *Options) allow(layout *Layout) error {
	for _, l := range layout.Lowers {
		if l.Verity == "" {
			continue
		}
		if !o.Partitions {
			return l.refuse(ClassVerity, optVerity+l.Verity, "layers with dm-verity are not handled; "+
				`set dmverity_mode = "off" in [plugins."io.containerd.snapshotter.v1.erofs"] and enable_dmverity = false in [plugins."io.containerd.differ.v1.erofs"], and pull the image again`)
		}
		if o.Layers == LayersMerge {
			return l.refuse(ClassVerity, optVerity+l.Verity, `a merged layer would lose its protection by dm-verity; set layers = "auto" in the configuration`)
		}
	}
	return nil
}

func (l *Lower) refuse(class Class, option, reason string) *Refusal {
	return &Refusal{Class: class, Mount: l.Mount, Type: "erofs", Source: l.Path, Option: option, Reason: reason}
}
