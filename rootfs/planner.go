package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/erofsvm/erofsvm/rootfs/merge"
)

// Options says where a Planner finds what it needs besides the mounts.
type Options struct {
	// CacheDir is where indexes of merged layers are kept, an absolute path.
	// It is made when it is needed, may be shared between processes, and must
	// be on a filesystem with O_TMPFILE.
	CacheDir string
	// CacheBytes is how large that directory may grow; 0 is 1 GiB. What was not
	// used for the longest is removed first, and nothing within ten minutes of
	// its use.
	CacheBytes int64
	// MkfsErofs is the path of mkfs.erofs, 1.9.3 or newer; a bare name is
	// looked up in PATH. It runs only when several layers are to be merged and
	// the cache does not have the result.
	MkfsErofs string
	// Layers overrides the rule by which several layers become one disk; ""
	// is LayersAuto.
	Layers Layers
	// Partitions says that the guest can find layers in the partitions of a
	// disk and open them through dm-verity, and that who makes the disk writes
	// Disk.Generated. Without it, what cannot be merged is refused, and so are
	// protected layers.
	Partitions bool
	// MakeUpper says that who makes the disks also makes the filesystem of
	// Disk.Format. Without it, an image that is not there is refused.
	MakeUpper bool
	// MemoryUpper is how many bytes of guest memory a writable layer may take
	// for which there is no image. 0 refuses such a layer; anything else says
	// that the runtime and the guest know storages on NoDisk.
	MemoryUpper int64
	// Discard has the guest mount a writable image with discard, unless the
	// list says otherwise, so that what is deleted in the guest becomes a hole
	// in the image. It is of use only if the VM's disk passes discards on.
	Discard bool
}

// Planner makes plans. It may be used from any goroutine.
type Planner struct {
	options Options
	merger  *merge.Builder
}

// NewPlanner returns a Planner. It touches no file.
func NewPlanner(o Options) *Planner {
	if o.Layers == "" {
		o.Layers = LayersAuto
	}
	return &Planner{options: o, merger: merge.New(o.MkfsErofs, o.CacheDir, o.CacheBytes)}
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
	if err := p.options.check(); err != nil {
		return nil, err
	}
	layout, err := Classify(mounts)
	if err != nil {
		return nil, err
	}
	if err := p.options.allow(layout); err != nil {
		return nil, err
	}
	layers, err := inspectLowers(layout.Lowers)
	if err != nil {
		return nil, err
	}
	plan := &Plan{Upper: UpperNone, Warnings: []string{}}
	if layout.Upper != nil {
		if err := p.addUpper(plan, layout.Upper); err != nil {
			return nil, err
		}
	}
	if len(layers) == 0 {
		err = p.addEmpty(plan)
	} else {
		err = p.addLayers(ctx, plan, layers)
	}
	if err != nil {
		return nil, err
	}
	if layout.Upper == nil && plan.Strategy == StrategyMerged {
		plan.Warnings = append(plan.Warnings, warnRoot)
	}
	return plan, nil
}

// addUpper plans the writable layer: an image, as a disk of its own, or a
// filesystem in the guest's memory.
func (p *Planner) addUpper(plan *Plan, u *Upper) error {
	storage := Storage{Disk: len(plan.Disks), FSType: "ext4", Options: slices.Clone(u.Options)}
	plan.Upper = UpperDisk
	if u.HostDir == "" {
		disk, err := u.disk()
		if err != nil {
			return err
		}
		plan.Disks = append(plan.Disks, disk)
		if p.options.Discard && !slices.Contains(u.Options, "discard") && !slices.Contains(u.Options, "nodiscard") {
			storage.Options = append(storage.Options, "discard")
		}
	} else {
		storage = Storage{Disk: NoDisk, FSType: "tmpfs", Options: []string{fmt.Sprintf("size=%d", p.options.MemoryUpper), "mode=0755"}}
		plan.Upper = UpperMemory
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("the writable layer lives in guest memory, %d bytes at most, and is lost with the container; "+
			"set default_size for the erofs snapshotter to have it on a disk", p.options.MemoryUpper))
	}
	storage.Options = append(storage.Options, agentUpper, agentMultiLayer)
	for _, m := range u.Mkdirs {
		storage.Options = append(storage.Options, m.agentOption())
	}
	plan.Storages = append(plan.Storages, storage)
	return nil
}

// disk is the writable image, which may be still to be made.
func (u *Upper) disk() (Disk, error) {
	disk := Disk{Role: RoleUpper, Driver: DriverRaw, Path: u.Path}
	var err error
	disk.Bytes, err = inspectUpper(u.Path)
	if u.Format != nil && errors.Is(err, os.ErrNotExist) {
		disk.Bytes, disk.Format = u.Format.Size, u.Format
		return disk, nil
	}
	return disk, err
}
