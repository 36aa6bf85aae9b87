package storage

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/uevent"
	"github.com/erofsvm/erofsvm/guest/verity"
)

var someHash = strings.Repeat("0123456789abcdef", 4)

// protected are the options of a layer with a hash tree.
func protected(root, offset string) []string {
	return []string{optVerity, optVerityRoot + root, optVerityOffset + offset}
}

// partition are the options of a layer in a partition.
func partition(number string) []string { return []string{optPartitioned, optPartition + number} }

// memory is the storage that the host sends for an upper layer in guest memory.
func memory(options ...string) *pb.Storage {
	return &pb.Storage{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: "/b/c/rootfs",
		Options: append([]string{optUpper, optMultiLayer}, options...)}
}

func onSCSI(s *pb.Storage, source string) *pb.Storage {
	s.Driver, s.Source = "scsi", source
	return s
}

func TestPlanOfDisksPartitionsAndMemory(t *testing.T) {
	tree := &verity.Tree{RootHash: someHash, HashOffset: 8192}
	long := &verity.Tree{RootHash: someHash + someHash, HashOffset: 1}
	for name, c := range map[string]struct {
		storages []*pb.Storage
		upper    uevent.Disk
		lowers   []uevent.Disk
		trees    []*verity.Tree
		stages   []string
	}{
		"read-only overlay": {
			storages: []*pb.Storage{lower("08/01"), lower("08/02")},
			lowers:   []uevent.Disk{{Driver: "blk", Source: "08/01"}, {Driver: "blk", Source: "08/02"}},
			trees:    []*verity.Tree{nil, nil},
		},
		"upper in memory": {
			storages: []*pb.Storage{memory("size=1048576", "mode=0755"), lower("08/01")},
			lowers:   []uevent.Disk{{Driver: "blk", Source: "08/01"}},
			trees:    []*verity.Tree{nil},
		},
		"a SCSI controller": {
			storages: []*pb.Storage{onSCSI(upper(), "0:1"), onSCSI(lower("", partition("1")...), "0:2"), onSCSI(lower("", partition("255")...), "0:2")},
			upper:    uevent.Disk{Driver: "scsi", Source: "0:1"},
			lowers:   []uevent.Disk{{Driver: "scsi", Source: "0:2", Partition: 1}, {Driver: "scsi", Source: "0:2", Partition: 255}},
			trees:    []*verity.Tree{nil, nil},
			stages:   []string{layout.StageSCSI, layout.StageSCSI, layout.StageSCSI},
		},
		"hash trees": {
			storages: []*pb.Storage{
				upper(), lower("08/01", append(partition("2"), protected(someHash, "8192")...)...),
				lower("08/01", partition("1")...), onSCSI(lower("", protected(someHash+someHash, "1")...), "1:0"),
			},
			upper:  uevent.Disk{Driver: "blk", Source: "08/00"},
			lowers: []uevent.Disk{{Driver: "blk", Source: "08/01", Partition: 2}, {Driver: "blk", Source: "08/01", Partition: 1}, {Driver: "scsi", Source: "1:0"}},
			trees:  []*verity.Tree{tree, nil, long},
			stages: []string{layout.StageVerity, layout.StageSCSI, layout.StageVerity},
		},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := Plan("/b", "c", c.storages)
			if err != nil {
				t.Fatal(err)
			}
			var upper uevent.Disk
			if plan.Upper != nil {
				upper = plan.Upper.Disk
			}
			var disks []uevent.Disk
			var trees []*verity.Tree
			for _, l := range plan.Lowers {
				disks, trees = append(disks, l.Disk), append(trees, l.Verity)
			}
			var stages []string
			for _, l := range plan.layers("") {
				stages = append(stages, l.stages()...)
			}
			if upper != c.upper || !reflect.DeepEqual(disks, c.lowers) || !reflect.DeepEqual(trees, c.trees) || !reflect.DeepEqual(stages, c.stages) {
				t.Errorf("upper %v, lowers %v, trees %v, stages %v", upper, disks, trees, stages)
			}
		})
	}
}

// Each of these would, taken half, be a layer that is not the one that was
// meant, or one that nobody protects.
func TestOptionsThatContradictAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		storage *pb.Storage
		class   error
		says    string
	}{
		{lower("08/01", optPartitioned), errdefs.ErrInvalidArgument, optPartition},
		{lower("08/01", optPartition+"1"), errdefs.ErrInvalidArgument, optPartitioned},
		{lower("08/01", partition("0")...), errdefs.ErrInvalidArgument, optPartition + "\"0\""},
		{lower("08/01", partition("256")...), errdefs.ErrInvalidArgument, "1 to 255"},
		{lower("08/01", partition("01")...), errdefs.ErrInvalidArgument, optPartition + "\"01\""},
		{lower("08/01", partition("+1")...), errdefs.ErrInvalidArgument, optPartition},
		{lower("08/01", partition("")...), errdefs.ErrInvalidArgument, optPartition},
		{lower("08/01", partition("1/../2")...), errdefs.ErrInvalidArgument, optPartition},
		{lower("08/01", append(partition("1"), optPartition+"2")...), errdefs.ErrInvalidArgument, "partition-number twice"},
		{lower("08/01", "X-kata.gpt-partitioned=false"), errdefs.ErrNotImplemented, "gpt-partitioned=false"},
		{upper(partition("1")...), errdefs.ErrInvalidArgument, optPartitioned},

		{lower("08/01", optVerity), errdefs.ErrInvalidArgument, optVerityRoot},
		{lower("08/01", optVerity, optVerityRoot+someHash), errdefs.ErrInvalidArgument, optVerityOffset},
		{lower("08/01", optVerityRoot+someHash, optVerityOffset+"4096"), errdefs.ErrInvalidArgument, optVerity},
		{lower("08/01", optVerityOffset+"4096"), errdefs.ErrInvalidArgument, "all or none"},
		{lower("08/01", protected("", "4096")...), errdefs.ErrInvalidArgument, optVerityRoot},
		{lower("08/01", protected(someHash[1:], "4096")...), errdefs.ErrInvalidArgument, optVerityRoot},
		{lower("08/01", protected(someHash+"00", "4096")...), errdefs.ErrInvalidArgument, optVerityRoot},
		{lower("08/01", protected(strings.ToUpper(someHash), "4096")...), errdefs.ErrInvalidArgument, "lower-case"},
		{lower("08/01", protected(someHash[:63]+"g", "4096")...), errdefs.ErrInvalidArgument, optVerityRoot},
		{lower("08/01", protected(someHash+" -", "4096")...), errdefs.ErrInvalidArgument, optVerityRoot},
		{lower("08/01", protected(someHash+"\n", "4096")...), errdefs.ErrInvalidArgument, optVerityRoot},
		{lower("08/01", protected(someHash, "")...), errdefs.ErrInvalidArgument, optVerityOffset},
		{lower("08/01", protected(someHash, "0")...), errdefs.ErrInvalidArgument, optVerityOffset},
		{lower("08/01", protected(someHash, "-1")...), errdefs.ErrInvalidArgument, optVerityOffset},
		{lower("08/01", protected(someHash, "0x1000")...), errdefs.ErrInvalidArgument, optVerityOffset},
		{lower("08/01", protected(someHash, "9223372036854775808")...), errdefs.ErrInvalidArgument, optVerityOffset},
		{lower("08/01", append(protected(someHash, "4096"), optVerityRoot+someHash)...), errdefs.ErrInvalidArgument, "roothash twice"},
		{lower("08/01", append(protected(someHash, "4096"), "X-kata.dmverity.salt=00")...), errdefs.ErrNotImplemented, "dmverity.salt"},
		{upper(protected(someHash, "4096")...), errdefs.ErrInvalidArgument, optUpper},
		{upper(optVerity), errdefs.ErrInvalidArgument, optVerity},

		{memory("mode=0755"), errdefs.ErrInvalidArgument, "size="},
		{memory("size=max"), errdefs.ErrInvalidArgument, "size=max"},
		{memory("ro", "size=4096"), errdefs.ErrInvalidArgument, "option ro"},
		{memory(append(partition("1"), "size=4096")...), errdefs.ErrInvalidArgument, optPartitioned},
		{memory(append(protected(someHash, "4096"), "size=4096")...), errdefs.ErrInvalidArgument, optVerity},
		{changed(memory("size=4096"), func(s *pb.Storage) { s.Source = "08/01" }), errdefs.ErrInvalidArgument, "ephemeral"},
		{changed(memory("size=4096"), func(s *pb.Storage) { s.Fstype = "ext4" }), errdefs.ErrInvalidArgument, "ephemeral"},
		{changed(memory("size=4096"), func(s *pb.Storage) { s.Options[0] = optLower }), errdefs.ErrInvalidArgument, optLower},
		{changed(upper("size=4096"), func(s *pb.Storage) { s.Fstype = "tmpfs" }), errdefs.ErrInvalidArgument, "want ext4"},
	} {
		_, err := Plan("/b", "c", []*pb.Storage{c.storage, lower("08/1f")})
		if !errors.Is(err, c.class) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%v:\n%v, want %q of class %v", c.storage.Options, err, c.says, c.class)
		}
	}
}

func TestDiskAndItsPartitionAreNotBothLayers(t *testing.T) {
	whole, part := lower("08/01"), lower("08/01", partition("1")...)
	for _, storages := range [][]*pb.Storage{{whole, part}, {part, whole}, {part, part}} {
		if _, err := Plan("/b", "c", storages); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "08/01") {
			t.Errorf("%v", err)
		}
	}
}
