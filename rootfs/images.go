package rootfs

import (
	"slices"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
)

// lowerImage is a Lower whose files have been looked at.
type lowerImage struct {
	Lower
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
		in := lowerImage{Lower: l, image: image}
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
func commonOptions(lowers []lowerImage) []string {
	var common []string
	for _, o := range lowers[0].Options {
		if !slices.ContainsFunc(lowers, func(l lowerImage) bool { return !slices.Contains(l.Options, o) }) {
			common = append(common, o)
		}
	}
	return common
}
