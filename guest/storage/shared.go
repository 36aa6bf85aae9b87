package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/uevent"
)

// Shared is a filesystem that belongs to the pod, and not to a container: one in the
// guest's memory, or one on a disk of its own. It is plain data.
type Shared struct {
	Target string // where it is mounted
	fstype string
	disk   uevent.Disk // of no driver if it is in memory
	Options
	mkdirs []Mkdir // in it, that are made if they are missing
}

// ParseShared reads such a storage, whose mount point is a name in dir.
func ParseShared(dir string, s *pb.Storage) (Shared, error) {
	shared, err := parseShared(dir, s)
	if err != nil {
		return Shared{}, fmt.Errorf("storage of the sandbox (%.32q at %.256q): %w", s.GetDriver(), s.GetMountPoint(), err)
	}
	return shared, nil
}

func parseShared(dir string, s *pb.Storage) (Shared, error) {
	shared := Shared{Target: s.GetMountPoint(), fstype: s.GetFstype()}
	switch {
	case filepath.Dir(shared.Target) != dir || CheckID(filepath.Base(shared.Target)) != nil:
		return Shared{}, invalid("the mount point is no name in %s", dir)
	case len(s.GetDriverOptions()) > 0 || s.GetFsGroup() != nil:
		return Shared{}, fmt.Errorf("driver_options and fs_group are not supported: %w", errdefs.ErrNotImplemented)
	}
	var kernel []string
	for _, o := range s.GetOptions() {
		text, mkdir := strings.CutPrefix(o, optMkdir)
		switch {
		case mkdir:
			d, err := parseMkdir(text, 1)
			if err != nil {
				return Shared{}, fmt.Errorf("%s%.256q: %w", optMkdir, text, err)
			}
			shared.mkdirs = append(shared.mkdirs, d)
		case strings.HasPrefix(o, optPrefix):
			return Shared{}, fmt.Errorf("option %.128q: %w", o, errdefs.ErrNotImplemented)
		default:
			kernel = append(kernel, o)
		}
	}
	if len(shared.mkdirs) > maxMkdirs {
		return Shared{}, invalid("more than %d directories to make", maxMkdirs)
	}
	if err := shared.place(s, kernel); err != nil {
		return Shared{}, err
	}
	var err error
	shared.Options, err = ParseOptions(shared.fstype, kernel)
	return shared, err
}

// place reads where the filesystem is.
func (s *Shared) place(wire *pb.Storage, kernel []string) error {
	if wire.GetDriver() != driverMemory {
		if s.fstype != "ext4" {
			return invalid("filesystem %.32q on a disk, want ext4", s.fstype)
		}
		s.disk = uevent.Disk{Driver: uevent.Driver(wire.GetDriver()), Source: wire.GetSource()}
		return s.disk.Check()
	}
	needs := map[string]string{memoryFS: "size=", hugeFS: "pagesize="}[s.fstype]
	if needs == "" {
		return invalid("filesystem %.32q in memory, want %s or %s", s.fstype, memoryFS, hugeFS)
	}
	if !slices.ContainsFunc(kernel, func(o string) bool { return strings.HasPrefix(o, needs) }) {
		return invalid("no option %s, and a filesystem in memory needs a bound", needs)
	}
	return nil
}

// Same says whether other is the same filesystem at the same place; how it is
// mounted, and what is to be in it, does not count.
func (s Shared) Same(other Shared) bool {
	return s.Target == other.Target && s.fstype == other.fstype && s.disk == other.disk
}

// Mount waits for the disk, if there is one, and mounts the filesystem at a
// directory that is made. The wait is bounded by ctx.
func (s Shared) Mount(ctx context.Context, system System) error {
	source := s.fstype
	if s.disk.Driver != "" {
		if s.disk.Driver == uevent.SCSI {
			if err := system.Modules.Load(ctx, layout.StageSCSI); err != nil {
				return fmt.Errorf("prepare for disk %s: %w", s.disk, err)
			}
		}
		node, err := system.Disks.Find(ctx, s.disk)
		if err != nil {
			return err
		}
		source = node
	}
	if err := os.MkdirAll(s.Target, 0o755); err != nil {
		return err
	}
	return mountFS(s.fstype, append([]string{"source=" + source}, s.super...), s.attrs, s.Target)
}

// MakeDirs makes the directories in it that are missing; it is mounted.
func (s Shared) MakeDirs() error {
	for _, d := range s.mkdirs {
		if err := d.make(s.Target); err != nil {
			return err
		}
	}
	return nil
}

// Unmount takes it away, after all that was written to a disk is there.
func (s Shared) Unmount() error {
	var lost error
	if s.disk.Driver != "" {
		lost = writeBack(s.Target)
	}
	return errors.Join(unmount(s.Target), lost)
}
