// Package storage mounts the root filesystem of a container from disks.
//
// Plan is pure: it holds the storages of a request to the rules and says what
// is to be mounted. Rootfs.Mount does it, and either all of it stands or
// nothing is left; the Mounted that it returns belongs to the caller, who ends
// it with Unmount. The package owns the directory of a container below
// Base, starts no goroutine that outlives a call, keeps no state between calls
// and never runs a program. Different containers may be mounted at the same
// time, from any goroutine.
package storage

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Base is where the protocol places everything of containers in the guest.
const Base = "/run/kata-containers"

// maxLowers is the kernel's bound on lower layers of an overlay
// (OVL_MAX_STACK, fs/overlayfs/params.h).
const maxLowers = 500

// Options of a storage that are for the agent, not for the kernel.
const (
	optUpper      = "X-kata.overlay-upper"
	optLower      = "X-kata.overlay-lower"
	optMultiLayer = "X-kata.multi-layer=true"
	optMkdir      = "X-kata.mkdir.path="
	optPrefix     = "X-kata."
)

// driverBlock is a disk that is named by its PCI path.
const driverBlock = "blk"

// containerID is what may become a name of a directory. It is narrower than
// what libcontainer takes, and at most as long as a name may be for cgroups.
//
// Patterns are compiled when they are first used: this program starts before a
// guest can answer, and once more for every process of a container.
var containerID = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
})

// CheckID refuses what may not be the id of a container or of a process.
func CheckID(id string) error {
	if !containerID().MatchString(id) {
		return fmt.Errorf("id %.140q: want a letter or digit, then up to 127 letters, digits, '_', '.' or '-': %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// RootfsPath is where the root filesystem of a container is mounted.
func RootfsPath(base, id string) string { return filepath.Join(base, id, "rootfs") }

// Layer is one disk of a root filesystem.
type Layer struct {
	Source string // of the disk, as Finder understands it
	FSType string
	Options
}

// Rootfs says what to mount for a container.
type Rootfs struct {
	ID     string
	Upper  *Layer  // nil: the root filesystem is read-only
	Lowers []Layer // topmost first, at least one
	Mkdirs []Mkdir // in the order in which they were asked for
}

// Plan holds storages, which all belong to the root filesystem of the container
// id, to the rules of multi-layer storages: at most one upper, at least one
// lower, the topmost first, all of them mounted at the rootfs. What breaks a
// rule gives errdefs.ErrInvalidArgument, what is known but not there yet
// errdefs.ErrNotImplemented.
func Plan(base, id string, storages []*pb.Storage) (Rootfs, error) {
	if err := CheckID(id); err != nil {
		return Rootfs{}, err
	}
	plan := Rootfs{ID: id}
	roles := make([]role, len(storages))
	for i, s := range storages {
		layer, r, err := parse(RootfsPath(base, id), s)
		if err != nil {
			return Rootfs{}, fmt.Errorf("storage %d (%.64q): %w", i, s.GetSource(), err)
		}
		roles[i] = r
		switch {
		case r.upper && plan.Upper != nil:
			return Rootfs{}, fmt.Errorf("storage %d: a second upper layer: %w", i, errdefs.ErrInvalidArgument)
		case r.upper:
			plan.Upper = &layer
		default:
			plan.Lowers = append(plan.Lowers, layer)
		}
	}
	switch n := len(plan.Lowers); {
	case n == 0:
		return Rootfs{}, fmt.Errorf("rootfs of %s: %d storages and no lower layer among them: %w", id, len(storages), errdefs.ErrInvalidArgument)
	case n > maxLowers:
		return Rootfs{}, fmt.Errorf("rootfs of %s: %d lower layers, the kernel takes %d: %w", id, n, maxLowers, errdefs.ErrInvalidArgument)
	case n > 1 && plan.Upper == nil:
		return Rootfs{}, fmt.Errorf("rootfs of %s: %d lower layers and no upper one: %w", id, n, errdefs.ErrNotImplemented)
	}
	mkdirs, err := resolveMkdirs(roles)
	if err != nil {
		return Rootfs{}, err
	}
	plan.Mkdirs = mkdirs
	return plan, nil
}

// mountOrder returns for each storage its place among the mounted layers: the
// upper one, then the lowers from the top.
func mountOrder(roles []role) []int {
	order := make([]int, len(roles))
	next := 0
	for i, r := range roles {
		if r.upper {
			order[i], next = 0, 1
		}
	}
	for i, r := range roles {
		if !r.upper {
			order[i] = next
			next++
		}
	}
	return order
}

// role is what a storage says of its part in the group.
type role struct {
	upper  bool
	mkdirs []string
}

func parse(rootfs string, s *pb.Storage) (Layer, role, error) {
	refuse := func(format string, args ...any) (Layer, role, error) {
		return Layer{}, role{}, fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	switch {
	case s.GetDriver() != driverBlock:
		return Layer{}, role{}, fmt.Errorf("driver %.64q, only %q is there: %w", s.GetDriver(), driverBlock, errdefs.ErrNotImplemented)
	case s.GetMountPoint() != rootfs:
		return refuse("mount point %.256q, want %s", s.GetMountPoint(), rootfs)
	case len(s.GetDriverOptions()) > 0 || s.GetFsGroup() != nil || s.GetShared():
		return Layer{}, role{}, fmt.Errorf("driver_options, fs_group and shared mean nothing for a layer: %w", errdefs.ErrNotImplemented)
	}

	var (
		r                 role
		lower, multiLayer bool
		kernel            []string
	)
	for _, o := range s.GetOptions() {
		switch {
		case o == optUpper:
			r.upper = true
		case o == optLower:
			lower = true
		case o == optMultiLayer:
			multiLayer = true
		case strings.HasPrefix(o, optMkdir):
			r.mkdirs = append(r.mkdirs, o[len(optMkdir):])
		case strings.HasPrefix(o, optPrefix):
			return Layer{}, role{}, fmt.Errorf("option %.128q: %w", o, errdefs.ErrNotImplemented)
		default:
			kernel = append(kernel, o)
		}
	}
	switch {
	case !multiLayer:
		return Layer{}, role{}, fmt.Errorf("no option %s, other storages of a rootfs are not there: %w", optMultiLayer, errdefs.ErrNotImplemented)
	case r.upper == lower:
		return refuse("want one of the options %s and %s", optUpper, optLower)
	case r.upper && s.GetFstype() != "ext4":
		return refuse("upper layer of type %.32q, want ext4", s.GetFstype())
	case lower && s.GetFstype() != "erofs":
		return refuse("lower layer of type %.32q, want erofs", s.GetFstype())
	}
	options, err := ParseOptions(s.GetFstype(), kernel)
	if err != nil {
		return Layer{}, role{}, err
	}
	if r.upper && options.ReadOnly() {
		return refuse("a read-only upper layer")
	}
	if lower {
		options.SetReadOnly()
	}
	return Layer{Source: s.GetSource(), FSType: s.GetFstype(), Options: options}, r, nil
}
