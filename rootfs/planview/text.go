package planview

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// node is a line of the tree and what hangs from it.
type node struct {
	text  string
	below []*node
}

func (n *node) add(format string, args ...any) *node {
	child := &node{text: fmt.Sprintf(format, args...)}
	n.below = append(n.below, child)
	return child
}

// Text prints the plan as a tree for people: the container, its disks, what
// they are made of and how the guest mounts them; then the warnings.
func Text(w io.Writer, plan *rootfs.Plan) error {
	root := &node{text: fmt.Sprintf("container: %s (%s)", plan.Strategy, plan.Reason)}
	for i := range plan.Disks {
		addDisk(root, plan, i)
	}
	for _, s := range plan.Storages {
		if s.Disk == rootfs.NoDisk {
			addMount(root.add("upper, in guest memory"), s)
		}
	}
	var out strings.Builder
	root.print(&out, "", "")
	for _, warning := range plan.Warnings {
		fmt.Fprintf(&out, "warning: %s\n", warning)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (n *node) print(out *strings.Builder, first, rest string) {
	fmt.Fprintf(out, "%s%s\n", first, n.text)
	for i, child := range n.below {
		if i < len(n.below)-1 {
			child.print(out, rest+"├── ", rest+"│   ")
		} else {
			child.print(out, rest+"└── ", rest+"    ")
		}
	}
}

func addDisk(root *node, plan *rootfs.Plan, i int) {
	d := plan.Disks[i]
	access := "read-write"
	if d.ReadOnly {
		access = "read-only"
	}
	disk := root.add("disk %d: %s, %s, %s, %s", i, d.Role, d.Driver, access, size(d.Bytes))
	switch {
	case d.Format != nil:
		disk.add("%q, to be made: %s of %s", d.Path, d.Format.FS, size(d.Format.Size))
	case d.Path != "":
		disk.add("%q", d.Path)
	}
	var mounts []rootfs.Storage
	for _, s := range plan.Storages {
		if s.Disk == i {
			mounts = append(mounts, s)
		}
	}
	if len(d.Partitions) > 0 {
		addPartitions(disk, d, mounts)
		return
	}
	for n, e := range d.Extents {
		disk.add("extent %d: %s", n, extent(e))
	}
	for _, s := range mounts {
		addMount(disk, s)
	}
}

// addPartitions shows each partition with the extents that lie in it; those
// between them are the table and padding.
func addPartitions(disk *node, d rootfs.Disk, mounts []rootfs.Storage) {
	disk.add("partition table and padding, made by the runtime: %s", size(madeBytes(d)))
	at := int64(0)
	extents := slices.Clone(d.Extents)
	for i, p := range d.Partitions {
		part := disk.add("partition %d: %s from %s on", p.Number, size(p.Sectors*512), size(p.Start*512))
		for ; len(extents) > 0 && at < p.Start+p.Sectors; extents = extents[1:] {
			if at >= p.Start {
				part.add("%s", extent(extents[0]))
			}
			at += extents[0].Sectors
		}
		addMount(part, mounts[i])
	}
}

func madeBytes(d rootfs.Disk) int64 {
	made := int64(0)
	for _, e := range d.Extents {
		if e.Path == "" {
			made += e.Sectors * 512
		}
	}
	return made
}

// addMount shows the options that the guest's kernel sees, and in words those
// that are for the agent.
func addMount(at *node, s rootfs.Storage) {
	var kernel, agent []string
	for _, o := range s.Options {
		if strings.HasPrefix(o, "X-") {
			agent = append(agent, o)
		} else {
			kernel = append(kernel, o)
		}
	}
	mount := at.add("guest mounts %s [%s]", s.FSType, strings.Join(kernel, ","))
	for _, o := range agent {
		if told, ok := told(o); ok {
			mount.add("%s", told)
		}
	}
}

// told is an option of the agent protocol for people; those that every storage
// has, or that the tree shows already, are left out.
func told(option string) (string, bool) {
	key, value, _ := strings.Cut(strings.TrimPrefix(option, "X-kata."), "=")
	switch key {
	case "multi-layer", "overlay-upper", "overlay-lower", "gpt-partitioned", "partition-number", "dmverity-enabled":
		return "", false
	case "mkdir.path":
		return "makes " + strings.TrimPrefix(value, "{{ mount 0 }}"), true
	case "dmverity.roothash":
		return "checks with dm-verity, root hash " + value, true
	case "dmverity.hashoffset":
		return "hash tree at " + value, true
	}
	return option, true
}

func extent(e vmdk.Extent) string {
	if e.Offset == 0 {
		return fmt.Sprintf("%s of %q", size(e.Sectors*512), e.Path)
	}
	return fmt.Sprintf("%s of %q, from %s on", size(e.Sectors*512), e.Path, size(e.Offset*512))
}

// size is a length with the largest unit in which it is a whole number, or with
// one decimal place where it is long.
func size(bytes int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB"}
	unit, whole := 0, bytes
	for unit < len(units)-1 && whole >= 1024 && whole%1024 == 0 {
		unit, whole = unit+1, whole/1024
	}
	if whole < 10240 {
		return fmt.Sprintf("%d %s", whole, units[unit])
	}
	part := float64(whole)
	for unit < len(units)-1 && part >= 1024 {
		unit, part = unit+1, part/1024
	}
	return fmt.Sprintf("%.1f %s", part, units[unit])
}

// Line is an error as one line.
func Line(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
