package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
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

// inspectLowers reads the superblocks of all files of the lowers.
func inspectLowers(lowers []Lower) ([]lowerImage, error) {
	images := make([]lowerImage, len(lowers))
	for i, l := range lowers {
		images[i].Lower = l
		if err := images[i].inspect(); err != nil {
			return nil, err
		}
	}
	return images, nil
}

func (l *lowerImage) inspect() error {
	err := l.open()
	if errors.Is(err, erofs.ErrNotEROFS) && isVMDK(l.Path) {
		return l.at.refuse(ClassUnknown, "", "is a VMDK descriptor, which could name any file of the host; hand over the index that lies beside it, with device= for each layer")
	}
	if err != nil {
		return err
	}
	image := l.image
	if len(l.Devices) == 0 && len(image.Super.Devices) != 0 && !image.TarIndex() {
		return l.at.refuse(ClassNoDevices, "", "its data lie in %d other files, which the mount must name with device=", len(image.Super.Devices))
	}
	for _, path := range l.Devices {
		device, err := erofs.Inspect(path)
		if err != nil {
			return err
		}
		l.devices = append(l.devices, device)
	}
	if l.devices == nil {
		return nil
	}
	return erofs.CheckDevices(image, l.devices)
}

// open reads the superblock and, of a protected layer, what there is about its
// tree.
func (l *lowerImage) open() (err error) {
	if l.Verity == "" {
		l.image, err = erofs.Inspect(l.Path)
		return err
	}
	f, image, err := erofs.Open(l.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	l.image = image
	if l.tree, err = verity.Read(l.Verity, f, image.Size, image.End()); err != nil {
		return fmt.Errorf("layer %q: %w", l.Path, err)
	}
	return nil
}

// isVMDK says whether the file at path starts as a VMDK descriptor does.
func isVMDK(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	var start [21]byte
	_, err = io.ReadFull(f, start[:])
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
