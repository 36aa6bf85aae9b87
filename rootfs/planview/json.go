package planview

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// view is the plan as programs read it. Where a disk will be in the VM, and
// where the container's root, is not known yet: a disk is named by its place in
// the list, and the root is "rootfs". Drivers are those of the agent's protocol
// for disks at a PCI address.
type view struct {
	Strategy rootfs.Strategy  `json:"strategy"`
	Reason   string           `json:"reason"`
	Upper    rootfs.UpperKind `json:"upper"`
	Disks    []disk           `json:"disks"`
	Storages []storage        `json:"storages"`
	Warnings []string         `json:"warnings"`
}

// disk has all its keys, whatever it is made of. An extent whose path is empty
// is part of a file that the runtime makes for the disk.
type disk struct {
	Role       rootfs.Role        `json:"role"`
	Driver     rootfs.Driver      `json:"driver"`
	Path       string             `json:"path"`
	ReadOnly   bool               `json:"readonly"`
	Bytes      int64              `json:"bytes"`
	Format     *rootfs.Format     `json:"format,omitempty"`
	Extents    []vmdk.Extent      `json:"extents"`
	Partitions []rootfs.Partition `json:"partitions"`
}

type storage struct {
	Driver     string   `json:"driver"`
	Source     string   `json:"source"`
	FSType     string   `json:"fstype"`
	Options    []string `json:"options"`
	MountPoint string   `json:"mount_point"`
}

// JSON prints the plan as one JSON object.
func JSON(w io.Writer, plan *rootfs.Plan) error {
	v := view{
		Strategy: plan.Strategy, Reason: plan.Reason, Upper: plan.Upper,
		Disks: []disk{}, Storages: []storage{}, Warnings: append([]string{}, plan.Warnings...),
	}
	for _, d := range plan.Disks {
		v.Disks = append(v.Disks, disk{
			Role: d.Role, Driver: d.Driver, Path: d.Path, ReadOnly: d.ReadOnly, Bytes: d.Bytes, Format: d.Format,
			Extents: append([]vmdk.Extent{}, d.Extents...), Partitions: append([]rootfs.Partition{}, d.Partitions...),
		})
	}
	for _, s := range plan.Storages {
		out := storage{Driver: "blk", Source: fmt.Sprintf("disks/%d", s.Disk), FSType: s.FSType, Options: s.Options, MountPoint: "rootfs"}
		if s.Disk == rootfs.NoDisk {
			out.Driver, out.Source = "ephemeral", s.FSType
		}
		v.Storages = append(v.Storages, out)
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
