package storage

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/token"
	"github.com/erofsvm/erofsvm/guest/uevent"
	"github.com/erofsvm/erofsvm/guest/verity"
)

// Options of a storage that are for the agent, not for the kernel. Those that
// end with "=" have a value.
const (
	optPrefix = "X-kata."

	optUpper      = optPrefix + "overlay-upper"
	optLower      = optPrefix + "overlay-lower"
	optMultiLayer = optPrefix + "multi-layer=true"
	optMkdir      = optPrefix + "mkdir.path="

	optPartitioned = optPrefix + "gpt-partitioned=true"
	optPartition   = optPrefix + "partition-number="

	optVerity       = optPrefix + "dmverity-enabled=true"
	optVerityRoot   = optPrefix + "dmverity.roothash="
	optVerityOffset = optPrefix + "dmverity.hashoffset="
)

// driverMemory is a filesystem in the memory of the guest, of type and source
// memoryFS, or of huge pages, which a pod's own may be. The other drivers are those of
// package uevent.
const (
	driverMemory = "ephemeral"
	memoryFS     = "tmpfs"
	hugeFS       = "hugetlbfs"
)

// Drivers are the drivers of storages that are there.
func Drivers() []string {
	return []string{string(uevent.Block), string(uevent.SCSI), driverMemory, driverShare}
}

// Layer is one filesystem of those that make a root filesystem.
type Layer struct {
	Disk   uevent.Disk // where it is; of no driver if it is in memory
	FSType string
	Verity *verity.Tree // nil: it is not protected
	Options
}

// inMemory reports whether the layer is on no disk.
func (l Layer) inMemory() bool { return l.Disk.Driver == "" }

// String is how errors name the layer.
func (l Layer) String() string {
	if l.inMemory() {
		return "upper layer in memory"
	}
	return "disk " + l.Disk.String()
}

// stages are the modules on demand that the layer needs.
func (l Layer) stages() []string {
	var need []string
	if l.Disk.Driver == uevent.SCSI {
		need = append(need, layout.StageSCSI)
	}
	if l.Verity != nil {
		need = append(need, layout.StageVerity)
	}
	return need
}

// role is what a storage says of its part in the group.
type role struct {
	upper  bool
	mkdirs []string
}

// parse holds a storage to the rules.
func parse(rootfs string, s *pb.Storage) (Layer, role, error) {
	switch {
	case s.GetMountPoint() != rootfs:
		return Layer{}, role{}, invalid("mount point %.256q, want %s", s.GetMountPoint(), rootfs)
	case len(s.GetDriverOptions()) > 0 || s.GetFsGroup() != nil || s.GetShared():
		return Layer{}, role{}, fmt.Errorf("driver_options, fs_group and shared mean nothing for a layer: %w", errdefs.ErrNotImplemented)
	}
	said, err := readOptions(s.GetOptions())
	if err != nil {
		return Layer{}, role{}, err
	}
	layer := Layer{FSType: s.GetFstype()}
	if s.GetDriver() == driverMemory {
		err = said.checkMemory(s)
	} else {
		layer.Disk = uevent.Disk{Driver: uevent.Driver(s.GetDriver()), Source: s.GetSource()}
		layer.Disk.Partition, layer.Verity, err = said.onDisk(s.GetFstype())
		if err == nil {
			err = layer.Disk.Check()
		}
	}
	if err != nil {
		return Layer{}, role{}, err
	}
	if layer.Options, err = ParseOptions(layer.FSType, said.kernel); err != nil {
		return Layer{}, role{}, err
	}
	if said.upper && layer.ReadOnly() {
		return Layer{}, role{}, invalid("option ro on an upper layer")
	}
	if said.lower {
		layer.SetReadOnly()
	}
	return layer, role{upper: said.upper, mkdirs: said.mkdirs}, nil
}

// said is what the options of a storage say; values that are nil are not there.
type said struct {
	upper, lower, multiLayer, partitioned, verity bool
	partition, root, offset                       *string
	mkdirs, kernel                                []string
}

// readOptions sorts the options and refuses those that say nothing, or two
// things.
func readOptions(options []string) (said, error) {
	var s said
	flags := map[string]*bool{
		optUpper: &s.upper, optLower: &s.lower, optMultiLayer: &s.multiLayer, optPartitioned: &s.partitioned, optVerity: &s.verity,
	}
	values := map[string]**string{optPartition: &s.partition, optVerityRoot: &s.root, optVerityOffset: &s.offset}
	for _, o := range options {
		key, value, hasValue := strings.Cut(o, "=")
		switch {
		case flags[o] != nil:
			*flags[o] = true
		case strings.HasPrefix(o, optMkdir):
			s.mkdirs = append(s.mkdirs, o[len(optMkdir):])
		case hasValue && values[key+"="] != nil:
			if *values[key+"="] != nil {
				return said{}, invalid("option %s twice", key)
			}
			*values[key+"="] = &value
		case strings.HasPrefix(o, optPrefix):
			return said{}, fmt.Errorf("option %.128q: %w", o, errdefs.ErrNotImplemented)
		default:
			s.kernel = append(s.kernel, o)
		}
	}
	switch {
	case !s.multiLayer:
		return said{}, fmt.Errorf("no option %s, other storages of a rootfs are not there: %w", optMultiLayer, errdefs.ErrNotImplemented)
	case s.upper == s.lower:
		return said{}, invalid("want one of the options %s and %s", optUpper, optLower)
	}
	return s, nil
}

// checkMemory refuses a filesystem in memory that is anything but a bounded
// upper layer.
func (s said) checkMemory(storage *pb.Storage) error {
	switch {
	case !s.upper:
		return invalid("option %s with driver %s, whose filesystem is empty", optLower, driverMemory)
	case storage.GetSource() != memoryFS || storage.GetFstype() != memoryFS:
		return invalid("driver %s with source %.32q and type %.32q, want %s for both", driverMemory, storage.GetSource(), storage.GetFstype(), memoryFS)
	case s.partitioned || s.partition != nil:
		return invalid("option %s or %s with driver %s", optPartitioned, optPartition, driverMemory)
	case s.protected():
		return invalid("option %s, %s or %s with driver %s", optVerity, optVerityRoot, optVerityOffset, driverMemory)
	}
	for _, o := range s.kernel {
		if strings.HasPrefix(o, "size=") {
			return nil
		}
	}
	return invalid("no option size=, and a filesystem in memory needs a bound")
}

// onDisk reads what the options say of the place and the protection of a
// filesystem on a disk, and refuses what they only half say.
func (s said) onDisk(fstype string) (partition int, tree *verity.Tree, err error) {
	switch {
	case s.upper && fstype != "ext4":
		return 0, nil, invalid("upper layer of type %.32q, want ext4", fstype)
	case s.lower && fstype != "erofs":
		return 0, nil, invalid("lower layer of type %.32q, want erofs", fstype)
	case s.partitioned != (s.partition != nil):
		return 0, nil, invalid("option %s or %s without the other", optPartitioned, optPartition)
	case s.upper && s.partitioned:
		return 0, nil, invalid("option %s with %s", optPartitioned, optUpper)
	case s.upper && s.protected():
		return 0, nil, invalid("option %s, %s or %s with %s, which is written to", optVerity, optVerityRoot, optVerityOffset, optUpper)
	}
	if s.partitioned {
		if partition, err = partitionNumber(*s.partition); err != nil {
			return 0, nil, err
		}
	}
	if s.protected() {
		if tree, err = s.tree(); err != nil {
			return 0, nil, err
		}
	}
	return partition, tree, nil
}

func partitionNumber(text string) (int, error) {
	if number, err := decimal(text); err == nil && number >= 1 && number <= uevent.MaxPartition {
		return int(number), nil
	}
	return 0, invalid("option %s%.32q, want 1 to %d", optPartition, text, uevent.MaxPartition)
}

// protected reports whether any option speaks of a hash tree.
func (s said) protected() bool { return s.verity || s.root != nil || s.offset != nil }

// isRootHash says that s is a hash of one of the two lengths that package verity takes.
func isRootHash(s string) bool {
	return token.Of(s, 64, 64, token.Hex) || token.Of(s, 128, 128, token.Hex)
}

// tree reads the options of a protected layer. One that is missing would leave
// it unprotected, or protected by nobody's hash: it needs all three.
func (s said) tree() (*verity.Tree, error) {
	switch {
	case !s.verity || s.root == nil || s.offset == nil:
		return nil, invalid("want all or none of the options %s, %s and %s", optVerity, optVerityRoot, optVerityOffset)
	case !isRootHash(*s.root):
		return nil, invalid("option %s%.140q, want 64 or 128 lower-case hexadecimal digits", optVerityRoot, *s.root)
	}
	offset, err := decimal(*s.offset)
	if err != nil || offset == 0 {
		return nil, invalid("option %s%.32q, want a number of bytes above 0", optVerityOffset, *s.offset)
	}
	return &verity.Tree{RootHash: *s.root, HashOffset: offset}, nil
}

// decimal reads a number that is written in the one way there is: without sign,
// leading zero or underscore. It fits into an int64.
func decimal(text string) (uint64, error) {
	number, err := strconv.ParseUint(text, 10, 63)
	if err == nil && strconv.FormatUint(number, 10) != text {
		err = strconv.ErrSyntax
	}
	return number, err
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
