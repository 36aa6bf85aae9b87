package rootfs

import (
	"slices"
	"strings"
)

// layoutOf reads the mounts that the lowers stand for, and makes sure that
// every mount has become the upper, one of the lowers, or what joins them.
func layoutOf(mounts []*mount, upper *Upper, lowers []place) (*Layout, error) {
	layout := &Layout{Upper: upper, Lowers: make([]Lower, 0, len(lowers))}
	used := make([]bool, len(mounts))
	if upper != nil {
		used[upper.Mount] = true
	}
	r := &resolver{mounts: mounts}
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
		lower, err := m.lower(r)
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
	return layout, nil
}

// lower reads the mount of a layer.
func (m *mount) lower(r *resolver) (*Lower, error) {
	if m.has("mkfs") || m.has("mkdir") {
		return nil, m.refuse(ClassInvalid, "", "a layer is neither made nor written to")
	}
	source, err := r.file(m.Source, m.index)
	if err != nil {
		return nil, m.refuse(ClassInvalid, "", "source %v", err)
	}
	lower := &Lower{Mount: m.index, Path: source, at: m}
	for _, o := range m.Options {
		device, isDevice := strings.CutPrefix(o, optDevice)
		metadata, isVerity := strings.CutPrefix(o, optVerity)
		switch {
		case isDevice:
			device, err = r.file(device, m.index)
			lower.Devices = append(lower.Devices, device)
		case isVerity && lower.Verity != "":
			return nil, m.refuse(ClassInvalid, o, "stands twice")
		case isVerity:
			lower.Verity, err = r.file(metadata, m.index)
		}
		if err != nil {
			return nil, m.refuse(ClassInvalid, o, "%v", err)
		}
	}
	if lower.Verity != "" && len(lower.Devices) > 0 {
		return nil, m.refuse(ClassUnknown, optVerity+lower.Verity, "stands beside device=, but dm-verity protects one file only")
	}
	options, unknown := guestOptions(m.Options, erofsOptions, func(o string) bool {
		return strings.HasPrefix(o, optDevice) || strings.HasPrefix(o, optVerity)
	})
	if mapsOwners(unknown) {
		return nil, m.mappedOwners(unknown)
	}
	if unknown != "" {
		return nil, m.refuse(ClassUnknown, unknown, "is not known for a layer")
	}
	if !slices.Contains(options, "ro") {
		options = append([]string{"ro"}, options...)
	}
	lower.Options = options
	return lower, nil
}
