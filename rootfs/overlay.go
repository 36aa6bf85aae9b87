package rootfs

import (
	"fmt"
	"slices"
	"strings"
)

// The directories of the writable image that the guest's overlay takes.
const (
	upperDir = "/upper"
	workDir  = "/work"
)

// usualMkdirs are the directories of a writable layer of which the list does
// not say how they come about.
func usualMkdirs() []Mkdir {
	return []Mkdir{{Path: upperDir, Mode: 0o755, UID: -1, GID: -1}, {Path: workDir, Mode: 0o755, UID: -1, GID: -1}}
}

// overlayOptions are the options of an overlay, resolved.
type overlayOptions struct {
	upperdir, workdir *place
	upper             string // the option with upperdir, for errors
	lowers            []place
	mkdirs            []string
	readOnly          bool
}

func (ovl *mount) overlayOptions(r *resolver) (*overlayOptions, error) {
	out := &overlayOptions{}
	for _, o := range ovl.Options {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch {
		case strings.HasPrefix(o, optMkdirPath):
			out.mkdirs = append(out.mkdirs, o)
		case key == "upperdir" && out.upperdir == nil:
			out.upperdir, out.upper = new(place), o
			*out.upperdir, err = r.place(value, ovl.index)
		case key == "workdir" && out.workdir == nil:
			out.workdir = new(place)
			*out.workdir, err = r.place(value, ovl.index)
		case key == "lowerdir" && out.lowers == nil:
			out.lowers, err = r.places(value, ovl.index)
		case key == "upperdir" || key == "workdir" || key == "lowerdir":
			return nil, ovl.refuse(ClassInvalid, o, "stands twice")
		case mapsOwners(o):
			return nil, ovl.mappedOwners(o)
		case o == "ro":
			out.readOnly = true
		case slices.Contains(overlayIgnored, o):
		default:
			return nil, ovl.refuse(ClassUnknown, o, "is not known for an overlay; remove it from the snapshotter's ovl_mount_options")
		}
		if err != nil {
			return nil, ovl.refuse(ClassInvalid, o, "%v", err)
		}
	}
	return out, nil
}

// mapsOwners says whether the option shifts owners.
func mapsOwners(option string) bool {
	return strings.HasPrefix(option, "uidmap=") || strings.HasPrefix(option, "gidmap=")
}

// mappedOwners is the refusal for a snapshot whose owners are shifted: shown
// unshifted, files would belong to somebody else.
func (m *mount) mappedOwners(option string) *Refusal {
	return m.refuse(ClassIDMap, option, "mapped owners are not handled; use a pod without a user namespace")
}

// classifyOverlay reads the overlay that joins the images.
func classifyOverlay(mounts []*mount, ovl *mount) (*Layout, error) {
	if ovl.has("mkfs") {
		return nil, ovl.refuse(ClassInvalid, "", "mkfs cannot make an overlay")
	}
	r := &resolver{mounts: mounts}
	o, err := ovl.overlayOptions(r)
	if err != nil {
		return nil, err
	}
	if len(o.lowers) == 0 {
		return nil, ovl.refuse(ClassInvalid, "", "an overlay without lowerdir")
	}
	if hosted := slices.IndexFunc(o.lowers, func(p place) bool { return p.mount == hostPath }); hosted >= 0 {
		return nil, ovl.hostMounted(fmt.Sprintf("layer directory %s", printable(o.lowers[hosted].path)))
	}
	upper, err := ovl.upper(mounts, r, o)
	if err != nil {
		return nil, err
	}
	return layoutOf(mounts, upper, o.lowers)
}

// upper is the writable layer of an overlay, nil if it has none.
func (ovl *mount) upper(mounts []*mount, r *resolver, o *overlayOptions) (*Upper, error) {
	switch {
	case (o.upperdir == nil) != (o.workdir == nil):
		return nil, ovl.refuse(ClassInvalid, "", "upperdir and workdir must stand together")
	case o.upperdir == nil && len(o.mkdirs) > 0:
		return nil, ovl.refuse(ClassInvalid, o.mkdirs[0], "there is no writable layer to make a directory in")
	case o.upperdir == nil:
		return nil, nil
	case o.readOnly:
		return nil, ovl.refuse(ClassInvalid, o.upper, "stands beside ro")
	case (o.upperdir.mount == hostPath) != (o.workdir.mount == hostPath):
		return nil, ovl.refuse(ClassInvalid, o.upper, "and workdir are not on one filesystem")
	case o.upperdir.mount == hostPath && len(o.mkdirs) > 0:
		return nil, ovl.refuse(ClassInvalid, o.mkdirs[0], "there is no writable image to make a directory in")
	case o.upperdir.mount == hostPath:
		return &Upper{Mount: ovl.index, HostDir: o.upperdir.path, Mkdirs: usualMkdirs(), at: ovl}, nil
	}
	m := mounts[o.upperdir.mount]
	if m.fs == "ext4" && (o.workdir.mount != m.index || o.upperdir.path != upperDir || o.workdir.path != workDir) {
		return nil, ovl.refuse(ClassUnknown, "", "the guest takes the directories upper and work of one image only, these are %s of mount %d and %s of mount %d",
			printable(o.upperdir.path), o.upperdir.mount, printable(o.workdir.path), o.workdir.mount)
	}
	upper, err := m.writableImage(r)
	if err != nil {
		return nil, err
	}
	return upper, upper.addMkdirs(r, ovl, o.mkdirs)
}
