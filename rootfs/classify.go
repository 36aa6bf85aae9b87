package rootfs

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/erofsvm/erofsvm/rootfs/ext4"
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
	// Lowers are the read-only layers, topmost first. There is none only below
	// an Upper, which is then all there is.
	Lowers []Lower
}

// Upper is an ext4 image with the directories upper and work, or what stands
// for one.
type Upper struct {
	Mount   int      // index into the list, for errors
	Path    string   // of the image, "" if there is none
	Options []string // for the guest's mount
	Mkdirs  []Mkdir  // in the order they are to be made
	// Format says how the image is made if it is missing; nil if it must be
	// there.
	Format *Format
	// HostDir is the directory of the host that the list has instead of an
	// image. The guest cannot see it and has only its memory to write to.
	HostDir string

	at *mount
}

// Format is a filesystem to be made, by ext4.Maker.
type Format = ext4.Format

// Lower is an EROFS image, alone or with the devices its table names.
type Lower struct {
	Mount   int // index into the list, for errors
	Path    string
	Options []string // for the guest's mount
	Devices []string // in the order of the device table
	Verity  string   // metadata file of dm-verity, "" if there is none

	at *mount
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
	}
	return classifyUnjoined(parsed)
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
	parsed, all := make([]*mount, len(mounts)), make([]mount, len(mounts))
	bytes, options := 0, 0
	for i, raw := range mounts {
		m := &all[i]
		m.Mount, m.index = raw, i
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
	ascii := true
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return fmt.Errorf("has a control character")
		}
		ascii = ascii && s[i] < utf8.RuneSelf
	}
	if !ascii && !utf8.ValidString(s) {
		return fmt.Errorf("is not UTF-8")
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

// hostMounted is the refusal for a root filesystem that is already mounted.
func (m *mount) hostMounted(what string) *Refusal {
	return m.refuse(ClassHostMounted, "", "containerd has mounted %s on the host itself, so there are no layers to hand to the VM; "+
		`use the erofs snapshotter (snapshotter = "erofs" for the runtime), and let containerd see the mount claims of the runtime `+
		"(containerd-shim-erofsvm-v2 -info must list containerd.io/runtime-allow-mounts)", what)
}
