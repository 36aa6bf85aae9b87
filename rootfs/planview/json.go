package planview

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/erofsvm/erofsvm/rootfs"
)

// view is the plan as programs read it. Where a disk will be in the VM, and
// where the container's root, is not known yet: a disk is named by its place in
// the list, and the root is "rootfs".
type view struct {
	Strategy rootfs.Strategy  `json:"strategy"`
	Reason   string           `json:"reason"`
	Upper    rootfs.UpperKind `json:"upper"`
	Disks    []rootfs.Disk    `json:"disks"`
	Storages []storage        `json:"storages"`
	Warnings []string         `json:"warnings"`
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
		Disks: plan.Disks, Warnings: plan.Warnings,
	}
	for _, s := range plan.Storages {
		out := storage{Driver: "blk", Source: fmt.Sprintf("disks/%d", s.Disk), FSType: s.FSType, Options: s.Options, MountPoint: "rootfs"}
		if s.Disk == rootfs.NoDisk {
			out.Driver, out.Source = "memory", s.FSType
		}
		v.Storages = append(v.Storages, out)
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
