package rootfs

import (
	"context"
	"fmt"
	"slices"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/merge"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// Options says where a Planner finds what it needs besides the mounts.
type Options struct {
	// CacheDir is where indexes of merged layers are kept, an absolute path.
	// It is made when it is needed, may be shared between processes, and must
	// be on a filesystem with O_TMPFILE.
	CacheDir string
	// MkfsErofs is the path of mkfs.erofs, 1.9.3 or newer; a bare name is
	// looked up in PATH. It runs only when several layers are to be merged and
	// the cache does not have the result.
	MkfsErofs string
}

// Planner makes plans. It may be used from any goroutine.
type Planner struct {
	merger *merge.Builder
}

// NewPlanner returns a Planner. It touches no file.
func NewPlanner(o Options) *Planner {
	return &Planner{merger: merge.New(o.MkfsErofs, o.CacheDir)}
}

// warnRoot is for a merged disk that is the root filesystem by itself. Below an
// upper layer nothing of it is seen: an overlay's root is that of the upper.
const warnRoot = "the root directory shows mode 0777 and owner 0:0, as mkfs.erofs does not merge those of the layers"

// Plan says what becomes of the mounts. It reads the superblocks of the files
// they name, and merges several layers into one index, which the context
// bounds. Errors are a *Refusal, or wrap one of those of the packages erofs,
// vmdk and merge, ErrUpper or os.ErrNotExist, and name the mount or the file.
//
// The files that the plan names are those that were there when it was made;
// none is kept open.
func (p *Planner) Plan(ctx context.Context, mounts []Mount) (*Plan, error) {
	layout, err := Classify(mounts)
	if err != nil {
		return nil, err
	}
	layers, err := inspectLowers(layout.Lowers)
	if err != nil {
		return nil, err
	}
	plan := &Plan{Warnings: []string{}}
	if layout.Upper != nil {
		if err := plan.addUpper(layout.Upper); err != nil {
			return nil, err
		}
	}
	if err := p.addLayers(ctx, plan, layers); err != nil {
		return nil, err
	}
	if layout.Upper == nil && plan.Strategy == StrategyMerged {
		plan.Warnings = append(plan.Warnings, warnRoot)
	}
	plan.Storages = append(plan.Storages, Storage{
		Disk: len(plan.Disks) - 1, FSType: "erofs",
		Options: append(slices.Clone(commonOptions(layout.Lowers)), agentLower, agentMultiLayer),
	})
	return plan, nil
}

// addUpper plans the writable image as a disk of its own.
func (plan *Plan) addUpper(u *Upper) error {
	size, err := inspectUpper(u.Path)
	if err != nil {
		return err
	}
	options := append(slices.Clone(u.Options), agentUpper, agentMultiLayer)
	for _, m := range u.Mkdirs {
		options = append(options, m.agentOption())
	}
	plan.Disks = append(plan.Disks, Disk{Role: RoleUpper, Driver: DriverRaw, Path: u.Path, Bytes: size})
	plan.Storages = append(plan.Storages, Storage{Disk: len(plan.Disks) - 1, FSType: "ext4", Options: options})
	return nil
}

// addLayers plans all layers as one disk.
func (p *Planner) addLayers(ctx context.Context, plan *Plan, lowers []lowerImage) error {
	if only := lowers[0]; len(lowers) == 1 {
		if only.devices == nil {
			return plan.addRaw(only.image)
		}
		return plan.addMerged(only.image, only.devices, fmt.Sprintf("an index of %d layers came with the mounts", len(only.devices)))
	}
	layers := flatten(lowers)
	merged, err := p.merger.Fsmeta(ctx, layers)
	if err != nil {
		return err
	}
	origin := "from the cache"
	if merged.Built {
		origin = "made now"
	}
	return plan.addMerged(merged.Meta, layers, fmt.Sprintf("%d layers share one index, %s", len(layers), origin))
}

// addRaw plans a single layer as the disk.
func (plan *Plan) addRaw(layer *erofs.Image) error {
	plan.Strategy = StrategyRaw
	plan.Reason = "there is one layer"
	plan.Disks = append(plan.Disks, Disk{
		Role: RoleLayers, Driver: DriverRaw, Path: layer.Path, ReadOnly: true, Bytes: layer.Size,
	})
	return nil
}

// addMerged plans an index and the layers of its device table as one disk. An
// extent is as long as the superblock says, not as its file: what follows the
// filesystem in a file would shift every later layer.
func (plan *Plan) addMerged(meta *erofs.Image, layers []*erofs.Image, reason string) error {
	if err := erofs.CheckDevices(meta, layers); err != nil {
		return err
	}
	disk := Disk{Role: RoleLayers, Driver: DriverVMDK, ReadOnly: true}
	for _, image := range append([]*erofs.Image{meta}, layers...) {
		if err := vmdk.CheckPath(image.Path); err != nil {
			return err
		}
		disk.Extents = append(disk.Extents, vmdk.Extent{
			Path: image.Path, Sectors: image.Super.Bytes() / erofs.SectorSize,
		})
		disk.Bytes += image.Super.Bytes()
	}
	plan.Strategy = StrategyMerged
	plan.Reason = reason
	plan.Disks = append(plan.Disks, disk)
	return nil
}

// lowerImage is a Lower whose files have been looked at.
type lowerImage struct {
	image   *erofs.Image
	devices []*erofs.Image // nil if it has none; in the order of its table
}

// inspectLowers reads the superblocks of all files of the lowers.
func inspectLowers(lowers []Lower) ([]lowerImage, error) {
	images := make([]lowerImage, 0, len(lowers))
	for _, l := range lowers {
		image, err := erofs.Inspect(l.Path)
		if err != nil {
			return nil, err
		}
		if len(l.Devices) == 0 && len(image.Super.Devices) != 0 {
			return nil, &Refusal{
				Class: ClassTarIndex, Mount: l.Mount, Type: "erofs", Source: l.Path,
				Reason: "its data lies behind it or in files that the mount does not name with device=, which is not handled; " +
					`set enable_tar_index = false in [plugins."io.containerd.differ.v1.erofs"] of containerd's configuration and pull the image again`,
			}
		}
		in := lowerImage{image: image}
		for _, path := range l.Devices {
			device, err := erofs.Inspect(path)
			if err != nil {
				return nil, err
			}
			in.devices = append(in.devices, device)
		}
		if len(in.devices) > 0 {
			if err := erofs.CheckDevices(image, in.devices); err != nil {
				return nil, err
			}
		}
		images = append(images, in)
	}
	return images, nil
}

// flatten is the list of all plain layers with the topmost last. An index
// stands for the layers of its device table, which has them in that order.
func flatten(lowers []lowerImage) []*erofs.Image {
	var layers []*erofs.Image
	for _, l := range slices.Backward(lowers) {
		if l.devices == nil {
			layers = append(layers, l.image)
		} else {
			layers = append(layers, l.devices...)
		}
	}
	return layers
}

// commonOptions are those that every lower is mounted with; the one mount of a
// merged disk stands for all of them.
func commonOptions(lowers []Lower) []string {
	var common []string
	for _, o := range lowers[0].Options {
		if !slices.ContainsFunc(lowers, func(l Lower) bool { return !slices.Contains(l.Options, o) }) {
			common = append(common, o)
		}
	}
	return common
}
