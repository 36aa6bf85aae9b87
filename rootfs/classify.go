package rootfs

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of a mount list. They are far above what containerd makes of the
// longest image (127 layers) and keep a hostile list cheap.
const (
	maxMounts  = 1024
	maxOptions = 4096     // of all mounts together
	maxSource  = 4095     // PATH_MAX less the terminating zero
	maxOption  = 64 << 10 // a host overlay's lowerdir= names all layers
	maxBytes   = 4 << 20  // of all strings together
)

// Layout is what a mount list means: the files, and what each is to the root
// filesystem. No file has been looked at.
type Layout struct {
	// Upper is the writable layer; nil makes the root filesystem read-only.
	Upper *Upper
	// Lowers are the read-only layers, topmost first, at least one.
	Lowers []Lower
}

// Upper is an ext4 image with the directories upper and work.
type Upper struct {
	Mount   int // index into the list, for errors
	Path    string
	Options []string // for the guest's mount
	Mkdirs  []Mkdir  // in the order they are to be made
}

// Lower is an EROFS image, alone or with the devices its table names.
type Lower struct {
	Mount   int // index into the list, for errors
	Path    string
	Options []string // for the guest's mount
	Devices []string // in the order of the device table
	Verity  string   // metadata file of dm-verity, "" if there is none
}

// mount is a Mount with its type taken apart.
type mount struct {
	Mount
	index      int
	transforms []string
	fs         string
}

func (m *mount) has(transform string) bool { return slices.Contains(m.transforms, transform) }

func (m *mount) refuse(class Class, option, reason string, args ...any) *Refusal {
	return &Refusal{
		Class: class, Mount: m.index, Type: m.Type, Source: m.Source, Option: option,
		Reason: fmt.Sprintf(reason, args...),
	}
}

// Classify says what the mounts mean, by their types, options and templates
// and never by their position. It is pure: no file is opened.
//
// Every image in the list has a place in the layout that it returns; a list
// that leaves one over, or that has anything in it that is not understood, is
// refused. The error is a *Refusal.
func Classify(mounts []Mount) (*Layout, error) {
	parsed, err := parse(mounts)
	if err != nil {
		return nil, err
	}
	last := parsed[len(parsed)-1]
	switch last.fs {
	case "overlay":
		return classifyOverlay(parsed, last)
	case "bind":
		return classifyBind(parsed, last)
	case "erofs":
		if len(parsed) == 1 {
			return layoutOf(parsed, nil, []place{{mount: 0}})
		}
	}
	return nil, last.refuse(ClassNoOverlay, "",
		"%d mounts end without an overlay or a bind that joins them into one root filesystem", len(parsed))
}

// parse checks the bounds of the list and takes the types apart.
func parse(mounts []Mount) ([]*mount, error) {
	whole := func(reason string, args ...any) error {
		return &Refusal{Class: ClassInvalid, Mount: -1, Reason: fmt.Sprintf(reason, args...)}
	}
	if len(mounts) == 0 {
		return nil, whole("the list is empty; containerd must hand over the snapshot's mounts")
	}
	if len(mounts) > maxMounts {
		return nil, whole("%d mounts, at most %d are taken", len(mounts), maxMounts)
	}
	parsed := make([]*mount, len(mounts))
	bytes, options := 0, 0
	for i, raw := range mounts {
		m := &mount{Mount: raw, index: i}
		if err := checkString(raw.Type, maxSource); err != nil {
			return nil, m.refuse(ClassInvalid, "", "type %v", err)
		}
		if err := checkString(raw.Source, maxSource); err != nil {
			return nil, m.refuse(ClassInvalid, "", "source %v", err)
		}
		if raw.Target != "" {
			return nil, m.refuse(ClassInvalid, "", "target %s: a root filesystem has mounts at its root only", printable(raw.Target))
		}
		bytes += len(raw.Type) + len(raw.Source)
		for _, o := range raw.Options {
			if err := checkString(o, maxOption); err != nil {
				return nil, m.refuse(ClassInvalid, o, "%v", err)
			}
			bytes += len(o)
		}
		if options += len(raw.Options); options > maxOptions {
			return nil, whole("more than %d options", maxOptions)
		}
		if bytes > maxBytes {
			return nil, whole("more than %d bytes of text", maxBytes)
		}
		if err := m.parseType(); err != nil {
			return nil, err
		}
		parsed[i] = m
	}
	return parsed, nil
}

// checkString refuses what could not be a path or an option: the strings end
// up in descriptors, argument lists and JSON, where a control character ends a
// line and a byte that is no UTF-8 is silently replaced.
func checkString(s string, longest int) error {
	if len(s) > longest {
		return fmt.Errorf("of %d bytes is longer than %d", len(s), longest)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("is not UTF-8")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return fmt.Errorf("has a control character")
	}
	return nil
}

func (m *mount) parseType() error {
	parts := strings.Split(m.Type, "/")
	m.transforms, m.fs = parts[:len(parts)-1], parts[len(parts)-1]
	for i, t := range m.transforms {
		if t != "format" && t != "mkdir" && t != "mkfs" {
			return m.refuse(ClassUnknown, "", "transform %s is not known (format, mkdir, mkfs are)", printable(t))
		}
		if slices.Contains(m.transforms[:i], t) {
			return m.refuse(ClassInvalid, "", "transform %s stands twice", t)
		}
	}
	switch m.fs {
	case "erofs", "ext4", "overlay", "bind":
	default:
		return m.refuse(ClassUnknown, "", "filesystem type %s is not known (erofs, ext4, overlay, bind are); "+
			"use the erofs snapshotter", printable(m.fs))
	}
	for _, o := range m.Options {
		switch {
		case strings.HasPrefix(o, optMkdirPrefix) && !m.has("mkdir"):
			return m.refuse(ClassInvalid, o, "stands on a mount without the mkdir transform")
		case strings.HasPrefix(o, optMkfsPrefix) && !m.has("mkfs"):
			return m.refuse(ClassInvalid, o, "stands on a mount without the mkfs transform")
		case templated(o) && !m.has("format"):
			return m.refuse(ClassInvalid, o, "has a template on a mount without the format transform")
		}
	}
	if templated(m.Source) && !m.has("format") {
		return m.refuse(ClassInvalid, "", "source has a template, but the mount not the format transform")
	}
	return nil
}

// classifyOverlay reads the options of the overlay that joins the images.
func classifyOverlay(mounts []*mount, ovl *mount) (*Layout, error) {
	if ovl.has("mkfs") {
		return nil, ovl.refuse(ClassInvalid, "", "mkfs cannot make an overlay")
	}
	r := resolverOf(mounts)
	var upperdir, workdir *place
	var lowers []place
	var upperOption string
	var mkdirs []string
	for _, o := range ovl.Options {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch {
		case strings.HasPrefix(o, optMkdirPath):
			mkdirs = append(mkdirs, o)
		case key == "upperdir" && upperdir == nil:
			upperdir, upperOption = new(place), o
			*upperdir, err = r.place(value, ovl.index)
		case key == "workdir" && workdir == nil:
			workdir = new(place)
			*workdir, err = r.place(value, ovl.index)
		case key == "lowerdir" && lowers == nil:
			lowers, err = r.places(value, ovl.index)
		case key == "upperdir" || key == "workdir" || key == "lowerdir":
			return nil, ovl.refuse(ClassInvalid, o, "stands twice")
		case key == "uidmap" || key == "gidmap":
			return nil, ovl.refuse(ClassIDMap, o, "mapped owners are not handled; use a pod without a user namespace")
		case o == "ro" || slices.Contains(overlayIgnored, o):
		default:
			return nil, ovl.refuse(ClassUnknown, o, "is not known for an overlay; remove it from the snapshotter's ovl_mount_options")
		}
		if err != nil {
			return nil, ovl.refuse(ClassInvalid, o, "%v", err)
		}
	}
	if len(lowers) == 0 {
		return nil, ovl.refuse(ClassInvalid, "", "an overlay without lowerdir")
	}
	if hosted := slices.IndexFunc(lowers, func(p place) bool { return p.mount == hostPath }); hosted >= 0 {
		return nil, ovl.hostMounted(fmt.Sprintf("layer directory %s", printable(lowers[hosted].path)))
	}
	if (upperdir == nil) != (workdir == nil) {
		return nil, ovl.refuse(ClassInvalid, "", "upperdir and workdir must stand together")
	}
	if upperdir == nil {
		if len(mkdirs) > 0 {
			return nil, ovl.refuse(ClassInvalid, mkdirs[0], "there is no writable layer to make a directory in")
		}
		return layoutOf(mounts, nil, lowers)
	}
	if slices.Contains(ovl.Options, "ro") {
		return nil, ovl.refuse(ClassInvalid, upperOption, "stands beside ro")
	}
	if upperdir.mount == hostPath || workdir.mount == hostPath {
		return nil, ovl.refuse(ClassHostUpper, upperOption, "the writable layer is a directory of the host, which is not shared with the VM; "+
			`set default_size (say "64M") in [plugins."io.containerd.snapshotter.v1.erofs"] of containerd's configuration, `+
			"so that the snapshotter makes a block image, and recreate the container")
	}
	upper, err := upperOf(mounts, r, ovl, *upperdir, *workdir, mkdirs)
	if err != nil {
		return nil, err
	}
	return layoutOf(mounts, upper, lowers)
}

// upperOf reads the mount that holds the overlay's writable directories.
func upperOf(mounts []*mount, r *resolver, ovl *mount, upperdir, workdir place, mkdirs []string) (*Upper, error) {
	m := mounts[upperdir.mount]
	switch {
	case m.fs != "ext4":
		return nil, m.refuse(ClassInvalid, "", "is the writable layer of the overlay but not ext4")
	case workdir.mount != m.index || upperdir.path != "/upper" || workdir.path != "/work":
		return nil, ovl.refuse(ClassUnknown, "", "the guest takes the directories upper and work of one image only, these are %s of mount %d and %s of mount %d",
			printable(upperdir.path), upperdir.mount, printable(workdir.path), workdir.mount)
	case m.has("mkfs"):
		return nil, m.refuse(ClassMkfs, "", "the writable image is still to be made, which is not handled; leave mkfs out of the runtime's mount claims, "+
			"and keep the snapshotter's root_path below containerd's root, where containerd makes it itself")
	case len(m.transforms) > 0:
		return nil, m.refuse(ClassUnknown, "", "transforms of a writable image are not handled")
	}
	options, unknown := guestOptions(m.Options, ext4Options, func(string) bool { return false })
	if unknown != "" {
		return nil, m.refuse(ClassUnknown, unknown, "is not known for a writable image")
	}
	if !slices.Contains(options, "rw") {
		return nil, m.refuse(ClassInvalid, "", "is the writable layer of the overlay but not mounted rw")
	}
	upper := &Upper{Mount: m.index, Path: m.Source, Options: options}
	for _, o := range mkdirs {
		path, dir, err := splitMkdir(strings.TrimPrefix(o, optMkdirPath))
		if err != nil {
			return nil, ovl.refuse(ClassInvalid, o, "%v", err)
		}
		at, err := r.place(path, ovl.index)
		if err != nil {
			return nil, ovl.refuse(ClassInvalid, o, "%v", err)
		}
		if at.mount != m.index || at.path == "" {
			return nil, ovl.refuse(ClassInvalid, o, "is not a directory in the writable image (mount %d)", m.index)
		}
		dir.Path = at.path
		upper.Mkdirs = append(upper.Mkdirs, dir)
	}
	return upper, nil
}

// classifyBind reads a bind mount, which containerd makes where an overlay of
// one layer would stand.
func classifyBind(mounts []*mount, bind *mount) (*Layout, error) {
	if !bind.has("format") {
		return nil, bind.hostMounted("directory " + printable(bind.Source))
	}
	at, err := resolverOf(mounts).place(bind.Source, bind.index)
	if err != nil {
		return nil, bind.refuse(ClassInvalid, "", "source %v", err)
	}
	if at.mount == hostPath {
		return nil, bind.hostMounted("directory " + printable(at.path))
	}
	if mounts[at.mount].fs == "ext4" {
		return nil, bind.refuse(ClassNoLayers, "", "a root filesystem without any layer is not handled; use an image with at least one")
	}
	for _, o := range bind.Options {
		switch o {
		case "ro", "rbind", "bind":
		default:
			return nil, bind.refuse(ClassUnknown, o, "is not known for a read-only view")
		}
	}
	if !slices.Contains(bind.Options, "ro") {
		return nil, bind.refuse(ClassInvalid, "", "an EROFS layer cannot be bound writable")
	}
	return layoutOf(mounts, nil, []place{at})
}

// hostMounted is the refusal for a root filesystem that is already mounted.
func (m *mount) hostMounted(what string) *Refusal {
	return m.refuse(ClassHostMounted, "", "containerd has mounted %s on the host itself, so there are no layers to hand to the VM; "+
		`use the erofs snapshotter (snapshotter = "erofs" for the runtime), and let containerd see the mount claims of the runtime `+
		"(containerd-shim-erofsvm-v2 -info must list containerd.io/runtime-allow-mounts)", what)
}

func resolverOf(mounts []*mount) *resolver {
	r := &resolver{mounts: make([]Mount, len(mounts))}
	for i, m := range mounts {
		r.mounts[i] = m.Mount
	}
	return r
}
