package rootfs

import (
	"slices"
	"strings"
)

// layoutOf reads the mounts that the lowers stand for, and makes sure that
// every mount but the last has become the upper or one of the lowers.
func layoutOf(mounts []*mount, upper *Upper, lowers []place) (*Layout, error) {
	layout := &Layout{Upper: upper, Lowers: make([]Lower, 0, len(lowers))}
	used := make([]bool, len(mounts))
	if upper != nil {
		used[upper.Mount] = true
	}
	for _, at := range lowers {
		m := mounts[at.mount]
		switch {
		case used[m.index]:
			return nil, m.refuse(ClassInvalid, "", "stands for two layers")
		case m.fs != "erofs":
			return nil, m.refuse(ClassInvalid, "", "is a layer but not erofs")
		case at.path != "":
			return nil, m.refuse(ClassUnknown, "", "only the whole of a layer can be used, not its directory %s", printable(at.path))
		}
		used[m.index] = true
		lower, err := lowerOf(m)
		if err != nil {
			return nil, err
		}
		layout.Lowers = append(layout.Lowers, *lower)
	}
	joined := mounts[len(mounts)-1]
	for _, m := range mounts {
		if !used[m.index] && (m != joined || m.fs == "erofs" || m.fs == "ext4") {
			return nil, m.refuse(ClassInvalid, "", "is part of neither the writable layer nor the layers below it")
		}
	}
	if upper != nil {
		if err := checkPath(upper.Path); err != nil {
			return nil, mounts[upper.Mount].refuse(ClassInvalid, "", "%v", err)
		}
	}
	return layout, nil
}

func lowerOf(m *mount) (*Lower, error) {
	if m.has("mkfs") || m.has("mkdir") {
		return nil, m.refuse(ClassInvalid, "", "a layer is neither made nor written to")
	}
	if m.has("format") {
		return nil, m.refuse(ClassUnknown, "", "templates in a layer are not handled")
	}
	if err := checkPath(m.Source); err != nil {
		return nil, m.refuse(ClassInvalid, "", "%v", err)
	}
	lower := &Lower{Mount: m.index, Path: m.Source}
	for _, o := range m.Options {
		switch device, isDevice := strings.CutPrefix(o, optDevice); {
		case isDevice:
			if err := checkPath(device); err != nil {
				return nil, m.refuse(ClassInvalid, o, "%v", err)
			}
			lower.Devices = append(lower.Devices, device)
		case strings.HasPrefix(o, optVerity):
			return nil, m.refuse(ClassVerity, o, "layers with dm-verity are not handled; "+
				`set dmverity_mode = "off" in [plugins."io.containerd.snapshotter.v1.erofs"] and enable_dmverity = false in [plugins."io.containerd.differ.v1.erofs"], and pull the image again`)
		}
	}
	options, unknown := guestOptions(m.Options, erofsOptions, func(o string) bool { return strings.HasPrefix(o, optDevice) })
	if unknown != "" {
		return nil, m.refuse(ClassUnknown, unknown, "is not known for a layer")
	}
	if !slices.Contains(options, "ro") {
		options = append([]string{"ro"}, options...)
	}
	lower.Options = options
	return lower, nil
}
