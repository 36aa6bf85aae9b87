// Package storage mounts the root filesystem of a container from disks, their
// partitions, and memory.
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

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/token"
	"github.com/erofsvm/erofsvm/guest/uevent"
)

// Base is where the protocol places everything of containers in the guest.
const Base = "/run/kata-containers"

// maxLowers is the kernel's bound on lower layers of an overlay
// (OVL_MAX_STACK, fs/overlayfs/params.h).
const maxLowers = 500

// CheckID refuses what may not be the id of a container or of a process, which
// becomes the name of a directory. It takes less than libcontainer does, and nothing
// longer than a name may be for cgroups.
func CheckID(id string) error {
	if !token.Of(id, 1, 128, token.Class(token.Alnum).Or("_.-")) || !token.Alnum(id[0]) {
		return fmt.Errorf("id %.140q: want a letter or digit, then up to 127 letters, digits, '_', '.' or '-': %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// RootfsPath is where the root filesystem of a container is mounted.
func RootfsPath(base, id string) string { return filepath.Join(base, id, "rootfs") }

// Rootfs says what to mount for a container.
type Rootfs struct {
	ID     string
	Upper  *Layer  // nil: the root filesystem is read-only
	Lowers []Layer // topmost first, at least one
	Mkdirs []Mkdir // in the order in which they were asked for
	Share  *Share  // nil: the container is shown no files of the host
}

// Plan holds storages of the container id to the rules. All but one, which may be a
// Share, belong to the root filesystem, and to the rules of multi-layer storages:
// at most one upper, at least one lower, the topmost first, all of them mounted
// at the rootfs, no disk or partition twice. Several lowers without an upper are a read-only overlay. What breaks a
// rule gives errdefs.ErrInvalidArgument, what is known but not there yet
// errdefs.ErrNotImplemented.
func Plan(base, id string, storages []*pb.Storage) (Rootfs, error) {
	if err := CheckID(id); err != nil {
		return Rootfs{}, err
	}
	plan := Rootfs{ID: id}
	storages, err := plan.takeShare(base, storages)
	if err != nil {
		return Rootfs{}, err
	}
	roles := make([]role, len(storages))
	for i, s := range storages {
		layer, r, err := parse(RootfsPath(base, id), s)
		if err != nil {
			return Rootfs{}, fmt.Errorf("storage %d (%.32q %.64q): %w", i, s.GetDriver(), s.GetSource(), err)
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
	}
	if err := plan.checkDisks(); err != nil {
		return Rootfs{}, fmt.Errorf("rootfs of %s: %w", id, err)
	}
	mkdirs, err := resolveMkdirs(roles)
	if err != nil {
		return Rootfs{}, err
	}
	plan.Mkdirs = mkdirs
	return plan, nil
}

// takeShare takes the share out of the storages.
func (r *Rootfs) takeShare(base string, storages []*pb.Storage) (layers []*pb.Storage, err error) {
	for _, s := range storages {
		if s.GetDriver() != driverShare {
			layers = append(layers, s)
			continue
		}
		if r.Share != nil {
			return nil, fmt.Errorf("share %.64q, beside %s: %w", s.GetSource(), r.Share.Tag, errdefs.ErrInvalidArgument)
		}
		if r.Share, err = parseShare(base, r.ID, s); err != nil {
			return nil, fmt.Errorf("share %.64q: %w", s.GetSource(), err)
		}
	}
	return layers, nil
}

// checkDisks refuses a disk or partition that is to be two layers, and a disk
// that is to be a layer and to have partitions: each is mounted by itself.
func (r Rootfs) checkDisks() error {
	taken, whole := map[uevent.Disk]bool{}, map[uevent.Disk]bool{}
	for _, l := range r.layers("") {
		if l.inMemory() {
			continue
		}
		disk := l.Disk
		disk.Partition = 0
		isWhole, seen := whole[disk]
		switch {
		case taken[l.Disk]:
			return fmt.Errorf("%s is two layers: %w", l, errdefs.ErrInvalidArgument)
		case seen && isWhole != (l.Disk.Partition == 0):
			return fmt.Errorf("disk %s is a layer and has partitions that are layers: %w", disk, errdefs.ErrInvalidArgument)
		}
		taken[l.Disk], whole[disk] = true, l.Disk.Partition == 0
	}
	return nil
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
