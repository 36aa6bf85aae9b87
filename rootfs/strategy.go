package rootfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/rootfs/merge"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// Layers is how the administrator wants several layers to become one disk. One
// layer, and an index that stands for all of them, stay what they are.
type Layers string

const (
	// LayersAuto merges what can be merged, and gives the rest partitions if
	// Options.Partitions allows it.
	LayersAuto Layers = "auto"
	// LayersMerge merges, and refuses what cannot be merged.
	LayersMerge Layers = "merge"
	// LayersPartition gives every lower a partition.
	LayersPartition Layers = "partition"
)

// addLayers plans all layers as one disk, by the first strategy that fits.
func (p *Planner) addLayers(ctx context.Context, plan *Plan, held *files.Set, lowers []lowerImage) error {
	if i := slices.IndexFunc(lowers, func(l lowerImage) bool { return l.tree != nil }); i >= 0 {
		return plan.addPartitioned(lowers, fmt.Sprintf("%q is protected by dm-verity, which the guest checks", lowers[i].Path))
	}
	if only := lowers[0]; len(lowers) == 1 {
		if only.devices == nil {
			plan.addRaw(only)
			return nil
		}
		return plan.addMerged(only.image, only.devices, only.Options, fmt.Sprintf("an index of %d layers came with the mounts", len(only.devices)))
	}
	if p.options.Layers == LayersPartition {
		return plan.addPartitioned(lowers, "the configuration wants partitions")
	}
	layers := flatten(lowers)
	merged, err := p.merger.Fsmeta(ctx, layers)
	switch {
	case err == nil:
		if err := held.Adopt(merged.Meta.File); err != nil {
			return err
		}
		origin := "from the cache"
		if merged.Built {
			origin = "made now"
		}
		if merged.Trim != nil {
			plan.Warnings = append(plan.Warnings, "the cache of indexes outgrows its limit: "+oneLine(merged.Trim))
		}
		return plan.addMerged(merged.Meta, layers, commonOptions(lowers), fmt.Sprintf("%d layers share one index, %s", len(layers), origin))
	case p.options.Partitions && p.options.Layers == LayersAuto && unmergeable(err) && ctx.Err() == nil:
		if errors.Is(err, merge.ErrTool) {
			plan.Warnings = append(plan.Warnings, oneLine(err))
		}
		return plan.addPartitioned(lowers, oneLine(err))
	}
	return err
}

// unmergeable says whether err is about the layers or mkfs.erofs, and not about
// the cache or the host.
func unmergeable(err error) bool {
	return errors.Is(err, merge.ErrIneligible) || errors.Is(err, merge.ErrTool) || errors.Is(err, merge.ErrBuild)
}

// oneLine is the text of err for a log and for the eyes.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// addEmpty plans an image without anything in it below a writable layer that
// has no layers: the guest then has an overlay to make as for any other.
func (p *Planner) addEmpty(plan *Plan, held *files.Set) error {
	image, err := p.merger.Empty()
	if err != nil {
		return err
	}
	if err := held.Adopt(image.File); err != nil {
		return err
	}
	plan.addRaw(lowerImage{Lower: Lower{Options: []string{"ro"}}, image: image})
	plan.Reason = "there is no layer, and an empty one stands for it"
	return nil
}

// warnRoot warns of a root directory that anybody may write to, where the image
// shows it. Below an upper layer nothing is seen of it: an overlay's root is that
// of the upper.
func (plan *Plan) warnRoot(image *erofs.Image) {
	const typeAndMode, openDir = 0o177777, 0o040777
	if mode, ok := image.RootMode(); plan.Upper == UpperNone && ok && mode&typeAndMode == openDir {
		plan.Warnings = append(plan.Warnings, "the root directory shows mode 0777, which mkfs.erofs gives to directories that a layer's tar does not list, and to the root of merged layers")
	}
}

// addRaw plans a single layer as the disk. If its file does not end with a
// sector, the disk ends before.
func (plan *Plan) addRaw(lower lowerImage) {
	disk := Disk{Role: RoleLayers, Driver: DriverRaw, Path: lower.image.Path, ReadOnly: true, Bytes: lower.image.Size}
	if disk.Bytes%erofs.SectorSize != 0 {
		disk = Disk{Role: RoleLayers, Driver: DriverVMDK, ReadOnly: true}
		disk.add(lower.extents()...)
	}
	plan.Strategy = StrategyRaw
	plan.Reason = "there is one layer"
	plan.Disks = append(plan.Disks, disk)
	plan.addLower(lower.Options)
	plan.warnRoot(lower.image)
}

// addMerged plans an index and the layers of its device table as one disk.
func (plan *Plan) addMerged(meta *erofs.Image, layers []*erofs.Image, options []string, reason string) error {
	if err := erofs.CheckDevices(meta, layers); err != nil {
		return err
	}
	disk := Disk{Role: RoleLayers, Driver: DriverVMDK, ReadOnly: true, Extents: make([]vmdk.Extent, 0, 1+len(layers))}
	disk.add(flatExtents(meta, layers)...)
	plan.Strategy = StrategyMerged
	plan.Reason = reason
	plan.Disks = append(plan.Disks, disk)
	plan.addLower(options)
	plan.warnRoot(meta)
	return nil
}

// flatExtents are an index and the layers of its device table, one after the
// other. An extent is as long as the superblock says, not as its file: what
// follows the filesystem in a file would shift every later layer.
func flatExtents(meta *erofs.Image, layers []*erofs.Image) []vmdk.Extent {
	extents := append(make([]vmdk.Extent, 0, 1+len(layers)), vmdk.Extent{Path: meta.Path, Sectors: meta.Super.Bytes() / erofs.SectorSize})
	for _, l := range layers {
		if offset, length := l.DeviceRange(); length > 0 {
			extents = append(extents, vmdk.Extent{Path: l.Path, Sectors: length / erofs.SectorSize, Offset: offset / erofs.SectorSize})
		}
	}
	return extents
}

// add puts extents at the end of the disk.
func (d *Disk) add(extents ...vmdk.Extent) {
	for _, e := range extents {
		d.Extents = append(d.Extents, e)
		d.Bytes += e.Sectors * erofs.SectorSize
	}
}

// checkPaths refuses what QEMU could not read in a descriptor.
func (plan *Plan) checkPaths() error {
	for _, d := range plan.Disks {
		for _, e := range d.Extents {
			if e.Path == "" {
				continue
			}
			if err := vmdk.CheckPath(e.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

// addLower plans the mount of a lower that lies on the last disk.
func (plan *Plan) addLower(options []string, more ...string) {
	options = append(slices.Clone(options), agentLower, agentMultiLayer)
	plan.Storages = append(plan.Storages, Storage{
		Disk: len(plan.Disks) - 1, FSType: "erofs", Options: append(options, more...),
	})
}
