package rootfs

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/erofsvm/erofsvm/rootfs/gpt"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// addPartitioned plans a disk with a partition per lower, the topmost first.
// An index is a partition together with the layers of its device table, if it is
// the lowest.
func (plan *Plan) addPartitioned(lowers []lowerImage, reason string) error {
	lowers = expandUpper(lowers)
	contents := make([]gpt.Content, len(lowers))
	pieces := make([][]vmdk.Extent, len(lowers))
	for i, l := range lowers {
		pieces[i] = l.extents()
		for _, e := range pieces[i] {
			contents[i].Sectors += e.Sectors
		}
		contents[i].Name = fmt.Sprintf("layer %d", i+1)
	}
	id := identify(lowers, contents)
	table, err := gpt.New(id, contents)
	if err != nil {
		return fmt.Errorf("partitions for %d layers: %w", len(lowers), err)
	}
	disk := Disk{
		Role: RoleLayers, Driver: DriverVMDK, ReadOnly: true, Generated: generated(table),
		Extents: make([]vmdk.Extent, 0, 2*len(lowers)+3), Partitions: make([]Partition, 0, len(lowers)),
	}
	zeros := int64(len(disk.Generated.Data)) / gpt.SectorSize
	pad := func(until int64) {
		if gap := until - disk.Bytes/gpt.SectorSize; gap > 0 {
			disk.add(vmdk.Extent{Sectors: gap, Offset: zeros})
		}
	}
	primary := int64(len(table.Primary)) / gpt.SectorSize
	disk.add(vmdk.Extent{Sectors: primary})
	for i, at := range table.Partitions {
		pad(at.Start)
		disk.add(pieces[i]...)
		disk.Partitions = append(disk.Partitions, Partition{
			Number: i + 1, Path: lowers[i].image.Path, Start: at.Start, Sectors: at.Sectors,
		})
	}
	pad(table.BackupStart())
	disk.add(vmdk.Extent{Sectors: zeros - primary, Offset: primary})
	plan.Strategy = StrategyPartitioned
	plan.Reason = reason
	plan.Disks = append(plan.Disks, disk)
	plan.Storages = slices.Grow(plan.Storages, len(lowers))
	for i, l := range lowers {
		options := []string{agentPartitioned, fmt.Sprintf("%s%d", agentPartition, i+1)}
		if l.tree != nil {
			options = append(options, agentVerity, agentVerityRoot+l.tree.RootHash, fmt.Sprintf("%s%d", agentVerityOffset, l.tree.HashOffset))
		}
		plan.addLower(l.Options, options...)
	}
	plan.warnRoot(lowers[0].image)
	return nil
}

// expandUpper puts its layers in the place of each index that has layers below
// it. mkfs.erofs strips an index of the whiteouts and opaque directories of its
// layers, so that what they delete below it would be seen again.
func expandUpper(lowers []lowerImage) []lowerImage {
	upper := lowers[:len(lowers)-1]
	if !slices.ContainsFunc(upper, func(l lowerImage) bool { return l.devices != nil }) {
		return lowers
	}
	var out []lowerImage
	for i, l := range lowers {
		if l.devices == nil || i == len(upper) {
			out = append(out, l)
			continue
		}
		for _, device := range slices.Backward(l.devices) {
			layer := lowerImage{Lower: l.Lower, image: device}
			layer.Path, layer.Devices = device.Path, nil
			out = append(out, layer)
		}
	}
	return out
}

// generated is the file with both copies of the table, and behind them zeros
// for the longest gap that there can be between partitions.
func generated(table *gpt.Layout) *vmdk.Generated {
	data := append(table.Primary, table.Backup...)
	return &vmdk.Generated{Data: data, Size: int64(len(data)) + gpt.Alignment*gpt.SectorSize}
}

// identify gives the disk and its partitions GUIDs that say what they hold, so
// that the same layers make the same disk, and returns that of the disk.
func identify(lowers []lowerImage, contents []gpt.Content) uuid.UUID {
	h := sha256.New()
	for i, l := range lowers {
		fmt.Fprintf(h, "%s %d\n", l.image.Super.UUID, contents[i].Sectors)
	}
	disk := ownUUID(h.Sum(nil))
	for i := range contents {
		sum := sha256.Sum256(fmt.Appendf(disk[:], "partition %d", i+1))
		contents[i].ID = ownUUID(sum[:])
	}
	return disk
}

// ownUUID makes a hash a UUID of one's own making, version 8 of RFC 9562.
func ownUUID(hash []byte) uuid.UUID {
	id := uuid.UUID(hash[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}
