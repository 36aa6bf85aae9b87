package rootfs

import (
	"errors"
	"fmt"
	"slices"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/rootfs/verity"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// lowerImage is a Lower whose files have been looked at.
type lowerImage struct {
	Lower
	image   *erofs.Image
	devices []*erofs.Image // nil if it has none; in the order of its table
	tree    *verity.Tree   // nil if it is not protected
}

// inspectLowers opens all files of the lowers and reads their superblocks.
func inspectLowers(held *files.Set, lowers []Lower) ([]lowerImage, error) {
	images := make([]lowerImage, len(lowers))
	for i, l := range lowers {
		images[i].Lower = l
		if err := images[i].inspect(held); err != nil {
			return nil, err
		}
	}
	return images, nil
}

func (l *lowerImage) inspect(held *files.Set) error {
	f, err := openLayer(held, l.Path)
	if err != nil {
		return err
	}
	if l.image, err = erofs.Inspect(f); errors.Is(err, erofs.ErrNotEROFS) && isVMDK(f) {
		return l.at.refuse(ClassUnknown, "", "is a VMDK descriptor, which could name any file of the host; hand over the index that lies beside it, with device= for each layer")
	}
	if err != nil {
		return err
	}
	if l.Verity != "" {
		if l.tree, err = verity.Read(l.Verity, l.image, l.image.Size, l.image.End()); err != nil {
			return fmt.Errorf("layer %q: %w", l.Path, err)
		}
	}
	if len(l.Devices) == 0 && len(l.image.Super.Devices) != 0 && !l.image.TarIndex() {
		return l.at.refuse(ClassNoDevices, "", "its data lie in %d other files, which the mount must name with device=", len(l.image.Super.Devices))
	}
	for _, path := range l.Devices {
		f, err := openLayer(held, path)
		if err != nil {
			return err
		}
		device, err := erofs.Inspect(f)
		if err != nil {
			return err
		}
		l.devices = append(l.devices, device)
	}
	if l.devices == nil {
		return nil
	}
	return erofs.CheckDevices(l.image, l.devices)
}

func openLayer(held *files.Set, path string) (*files.File, error) {
	f, err := held.Open(path, files.ReadOnly)
	if err != nil {
		return nil, fmt.Errorf("EROFS image: %w", err)
	}
	return f, nil
}

// isVMDK says whether the file starts as a VMDK descriptor does.
func isVMDK(f *files.File) bool {
	var start [21]byte
	_, err := f.ReadAt(start[:], 0)
	return err == nil && string(start[:]) == "# Disk DescriptorFile"
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
func commonOptions(lowers []lowerImage) []string {
	var common []string
	for _, o := range lowers[0].Options {
		if !slices.ContainsFunc(lowers, func(l lowerImage) bool { return !slices.Contains(l.Options, o) }) {
			common = append(common, o)
		}
	}
	return common
}

// extents are what a guest reads of the lower on a disk or partition of its
// own. A tar and a hash tree are found at their places in the file, so that the
// file is there as a whole.
func (l *lowerImage) extents() []vmdk.Extent {
	switch {
	case l.devices != nil:
		return flatExtents(l.image, l.devices)
	case l.tree != nil || l.image.TarIndex():
		return []vmdk.Extent{{Path: l.image.Path, Sectors: l.image.Size / erofs.SectorSize}}
	}
	return []vmdk.Extent{{Path: l.image.Path, Sectors: l.image.Super.Bytes() / erofs.SectorSize}}
}
