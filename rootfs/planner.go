package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/ext4"
	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/rootfs/merge"
)

// ErrUpper is a writable image that is not a whole ext4 filesystem.
var ErrUpper = ext4.ErrImage

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
	// Lend keeps the files that a plan is made from open, so that the VM can be
	// given those that were checked, whatever becomes of their names; see
	// Plan.File. A writable image is then opened for writing, and paths may be
	// such as QEMU could not read in a descriptor.
	Lend bool
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

// Plan says what becomes of the mounts. It opens each file that they name once,
// reads the superblocks, and merges several layers into one index, which the
// context bounds. Errors are a *Refusal, or wrap one of those of the packages
// erofs, verity, vmdk and merge, ErrUpper, files.ErrLimit or os.ErrNotExist, and
// name the mount or the file.
//
// With Options.Lend the files stay open until the caller calls Plan.Close.
// Without it, or after an error, none does.
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
	held := files.NewSet()
	plan, err := p.plan(ctx, held, layout)
	if err != nil {
		return nil, errors.Join(err, held.Close())
	}
	if p.options.Lend {
		plan.held = held
		return plan, nil
	}
	if err := errors.Join(plan.checkPaths(), held.Close()); err != nil {
		return nil, err
	}
	return plan, nil
}

// plan opens what the layout names and makes the plan of it.
func (p *Planner) plan(ctx context.Context, held *files.Set, layout *Layout) (*Plan, error) {
	if err := files.Room(layout.files()); err != nil {
		return nil, fmt.Errorf("rootfs of %d mounted layers: %w", len(layout.Lowers), err)
	}
	layers, err := inspectLowers(held, layout.Lowers)
	if err != nil {
		return nil, err
	}
	plan := &Plan{Upper: UpperNone, Warnings: []string{}}
	if layout.Upper != nil {
		if err := p.addUpper(plan, held, layout.Upper, layers); err != nil {
			return nil, err
		}
	}
	if len(layers) == 0 {
		err = p.addEmpty(plan, held)
	} else {
		err = p.addLayers(ctx, plan, held, layers)
	}
	if err != nil {
		return nil, err
	}
	return plan, nil
}

// files is how many files a plan of the layout has open at most: those that it
// names, and an index.
func (l *Layout) files() int {
	n := 1
	if l.Upper != nil {
		n++
	}
	for _, lower := range l.Lowers {
		n += 1 + len(lower.Devices)
	}
	return n
}

// addUpper plans the writable layer: an image, as a disk of its own, or a
// filesystem in the guest's memory.
func (p *Planner) addUpper(plan *Plan, held *files.Set, u *Upper, layers []lowerImage) error {
	storage := Storage{Disk: len(plan.Disks), FSType: "ext4", Options: slices.Clone(u.Options)}
	plan.Upper = UpperDisk
	if u.HostDir == "" {
		disk, err := p.upperDisk(held, u, layers)
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

// upperDisk is the writable image, which may be still to be made.
func (p *Planner) upperDisk(held *files.Set, u *Upper, layers []lowerImage) (Disk, error) {
	disk := Disk{Role: RoleUpper, Driver: DriverRaw, Path: u.Path}
	access := files.ReadOnly
	if p.options.Lend {
		access = files.ReadWrite
	}
	f, err := held.Open(u.Path, access)
	if u.Format != nil && errors.Is(err, os.ErrNotExist) {
		disk.Bytes, disk.Format = u.Format.Size, u.Format
		return disk, nil
	}
	if err != nil {
		return Disk{}, fmt.Errorf("writable image: %w", err)
	}
	disk.Bytes = f.Size
	// One file could be made to look like both.
	for _, l := range layers {
		for _, image := range append([]*erofs.Image{l.image}, l.devices...) {
			if f.Same(image.File) {
				return Disk{}, u.at.refuse(ClassInvalid, "", "is the same file as layer %s", printable(image.Path))
			}
		}
	}
	return disk, ext4.Inspect(f)
}
