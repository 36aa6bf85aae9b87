package rootfs

import (
	"slices"
	"strings"
)

// classifyBind reads a bind mount, which containerd makes where an overlay of
// one layer would stand.
func classifyBind(mounts []*mount, bind *mount) (*Layout, error) {
	if !bind.has("format") {
		return nil, bind.hostMounted("directory " + printable(bind.Source))
	}
	r := &resolver{mounts: mounts}
	at, err := r.place(bind.Source, bind.index)
	if err != nil {
		return nil, bind.refuse(ClassInvalid, "", "source %v", err)
	}
	if at.mount == hostPath {
		return nil, bind.hostMounted("directory " + printable(at.path))
	}
	readOnly := false
	var mkdirs []string
	for _, o := range bind.Options {
		switch {
		case o == "ro":
			readOnly = true
		case o == "rw", o == "rbind", o == "bind":
		case strings.HasPrefix(o, optMkdirPath):
			mkdirs = append(mkdirs, o)
		case mapsOwners(o):
			return nil, bind.mappedOwners(o)
		default:
			return nil, bind.refuse(ClassUnknown, o, "is not known for a bind")
		}
	}
	if slices.Contains(bind.Options, "rw") && readOnly {
		return nil, bind.refuse(ClassInvalid, "rw", "stands beside ro")
	}
	target := mounts[at.mount]
	if target.fs == "ext4" {
		return classifyBareUpper(mounts, bind, target, at, readOnly, mkdirs)
	}
	if !readOnly {
		return nil, bind.refuse(ClassInvalid, "", "an EROFS layer cannot be bound writable")
	}
	if len(mkdirs) > 0 {
		return nil, bind.refuse(ClassInvalid, mkdirs[0], "there is no writable layer to make a directory in")
	}
	return layoutOf(mounts, nil, []place{at})
}

// classifyBareUpper reads the bind of a writable image without a layer below.
func classifyBareUpper(mounts []*mount, bind, image *mount, at place, readOnly bool, mkdirs []string) (*Layout, error) {
	if readOnly {
		return nil, bind.refuse(ClassNoLayers, "", "a read-only root filesystem without any layer is empty; use an image with at least one")
	}
	if at.path != upperDir {
		return nil, bind.refuse(ClassUnknown, "", "only the directory upper of a writable image can be the root, not %s", printable(at.path))
	}
	r := &resolver{mounts: mounts}
	upper, err := image.writableImage(r)
	if err != nil {
		return nil, err
	}
	if err := upper.addMkdirs(r, bind, mkdirs); err != nil {
		return nil, err
	}
	// The guest mounts it as an overlay, which wants a work directory too.
	for _, usual := range usualMkdirs() {
		if !slices.ContainsFunc(upper.Mkdirs, func(m Mkdir) bool { return m.Path == usual.Path }) {
			upper.Mkdirs = append(upper.Mkdirs, usual)
		}
	}
	return layoutOf(mounts, upper, nil)
}

// classifyUnjoined reads a list that leaves the overlay to the runtime, as
// snapshotters for VMs make it: one EROFS image, with the layers of its device
// table or none, and at most one writable image. Of several images without an
// overlay nothing would say which is the topmost.
func classifyUnjoined(mounts []*mount) (*Layout, error) {
	var upper *mount
	var lowers []place
	for _, m := range mounts {
		switch {
		case m.fs == "erofs":
			lowers = append(lowers, place{mount: m.index})
		case m.fs == "ext4" && upper == nil:
			upper = m
		case m.fs == "ext4":
			return nil, m.refuse(ClassInvalid, "", "is a second writable image, mount %d is one", upper.index)
		default:
			return nil, m.refuse(ClassInvalid, "", "stands before other mounts, but can only join those before it")
		}
	}
	if len(lowers) != 1 {
		return nil, mounts[len(mounts)-1].refuse(ClassNoOverlay, "",
			"%d mounts with %d layers end without an overlay or a bind that joins them into one root filesystem", len(mounts), len(lowers))
	}
	if upper == nil {
		return layoutOf(mounts, nil, lowers)
	}
	image, err := upper.writableImage(&resolver{mounts: mounts})
	if err != nil {
		return nil, err
	}
	image.Mkdirs = usualMkdirs()
	return layoutOf(mounts, image, lowers)
}
