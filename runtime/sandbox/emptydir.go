package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/rootfs/ext4"
	"github.com/erofsvm/erofsvm/runtime/emptydir"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
)

// emptyDirs are the volumes of a machine that live in its guest: each is there from
// the first container that mounts it to the end of the VM, so that all containers of
// the pod have the same, and one that comes back finds its files.
type emptyDirs struct {
	mu       sync.Mutex
	byDir    map[string]*emptyDir // by directory of the host
	attached bool                 // the disk of any of them
}

// emptyDir is one of them. Whoever has the turn may attach its disk.
type emptyDir struct {
	name string // of its directory in the guest; its disk's too
	turn chan struct{}
	at   *place // of its disk; nil until that is attached
}

// wantedDir is a mount of a container that is of such a volume.
type wantedDir struct {
	*emptydir.Volume
	mount *pb.Mount
}

// takeEmptyDirs takes the mounts of emptyDirs out of those that are copied, unless
// the configuration has them treated like others.
func takeEmptyDirs(guest *guestspec.Result, how configs.Mounts) ([]wantedDir, error) {
	if how.EmptyDir != configs.EmptyDirGuest {
		return nil, nil
	}
	var wanted []wantedDir
	var others []guestspec.Copy
	for _, c := range guest.Copies {
		v, err := emptydir.Look(c.Source)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", c.Destination, err)
		}
		if v == nil {
			others = append(others, c)
			continue
		}
		for _, m := range guest.Spec.GetMounts() {
			if m.GetSource() == c.Guest {
				wanted = append(wanted, wantedDir{v, m})
			}
		}
	}
	guest.Copies = others
	return wanted, nil
}

// contentDir is the directory of a volume's filesystem that containers see: its root
// has what belongs to the filesystem.
const contentDir = "data"

// giveEmptyDirs lets a container have its volumes, attaches the disks of those that
// are new in the pod, and returns the storages that the agent needs. limits are those
// of the containers of the pod, this one's among them.
func (m *machine) giveEmptyDirs(ctx context.Context, wanted []wantedDir, limits []*pb.LinuxResources) ([]*pb.Storage, error) {
	var storages []*pb.Storage
	for _, w := range wanted {
		d := m.empty.get(w.Dir)
		err := checkHugePages(w.Volume, limits)
		var storage *pb.Storage
		if err == nil {
			storage, err = m.emptyDirStorage(ctx, w, d)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s, an emptyDir: %w", w.mount.GetDestination(), err)
		}
		w.mount.Source = path.Join(storage.GetMountPoint(), contentDir, w.Sub)
		storages = append(storages, storage)
	}
	return storages, nil
}

// checkHugePages says whether the guest has reserved any huge pages for a volume of
// them. One without would be found out by the program that maps it.
func checkHugePages(v *emptydir.Volume, limits []*pb.LinuxResources) error {
	if v.HugePage == 0 {
		return nil
	}
	for _, l := range limits {
		for _, h := range l.GetHugepageLimits() {
			if h.GetPagesize() == v.HugePageName() && h.GetLimit() > 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("its medium are huge pages of %s, of which the guest reserves as many as the limits of containers allow, and no container of the pod has such a limit: if the pod does, set disable_hugetlb_controller = false in containerd's configuration of the CRI, and let the host have the hugetlb cgroup: %w",
		v.HugePageName(), errdefs.ErrFailedPrecondition)
}

// get returns the volume of a directory of the host.
func (all *emptyDirs) get(dir string) *emptyDir {
	all.mu.Lock()
	defer all.mu.Unlock()
	d := all.byDir[dir]
	if d == nil {
		if all.byDir == nil {
			all.byDir = map[string]*emptyDir{}
		}
		d = &emptyDir{name: fmt.Sprintf("volume-%d", len(all.byDir)), turn: make(chan struct{}, 1)}
		all.byDir[dir] = d
	}
	return d
}

// emptyDirStorage is the storage of a volume with the directories that the mount
// needs, which get the owners and modes that the kubelet has given the host's. It is
// the same for each container of the pod, but for those.
func (m *machine) emptyDirStorage(ctx context.Context, w wantedDir, d *emptyDir) (*pb.Storage, error) {
	s := &pb.Storage{MountPoint: path.Join(guestRoot, "sandbox", d.name), Shared: true}
	switch {
	case w.HugePage > 0:
		s.Driver, s.Source, s.Fstype = "ephemeral", "hugetlbfs", "hugetlbfs"
		s.Options = []string{fmt.Sprintf("pagesize=%d", w.HugePage)}
	case w.Memory:
		s.Driver, s.Source, s.Fstype = "ephemeral", "tmpfs", "tmpfs"
		s.Options = []string{fmt.Sprintf("size=%d", m.boundMemory(w.Bytes))}
	default:
		at, err := m.attachEmptyDir(ctx, w.Volume, d)
		if err != nil {
			return nil, err
		}
		s.Driver, s.Source, s.Fstype = at.driver, at.source, "ext4"
		if m.cfg.Rootfs.Discard {
			s.Options = []string{"discard"} // what is deleted is the host's again
		}
	}
	s.Options = append(s.Options, mkdirOption(contentDir, w.Owner))
	if w.Sub != "" {
		s.Options = append(s.Options, mkdirOption(path.Join(contentDir, w.Sub), w.SubOwner))
	}
	return s, nil
}

func mkdirOption(dir string, o emptydir.Owner) string {
	return fmt.Sprintf("X-kata.mkdir.path={{ mount 0 }}/%s:%04o:%d:%d", dir, o.Mode, o.UID, o.GID)
}

// boundMemory is the size in bytes of a filesystem in memory: that of the host's, and
// no more than the VM can have.
func (m *machine) boundMemory(bytes int64) int64 {
	return min(bytes, int64(most(m.cfg.Hypervisor, hostSize()).MemoryMiB)<<20)
}

// attachEmptyDir attaches the disk of a volume unless it is there.
func (m *machine) attachEmptyDir(ctx context.Context, v *emptydir.Volume, d *emptyDir) (place, error) {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return place{}, fmt.Errorf("wait for another container that attaches it: %w", context.Cause(ctx))
	}
	if d.at != nil {
		return *d.at, nil
	}
	image, err := v.Image(func(path string) (*os.File, error) { return m.makeEmptyDirImage(ctx, path) })
	if errors.Is(err, ext4.ErrTool) {
		err = fmt.Errorf("rootfs.mkfs_ext4 = %q: %w", m.cfg.Rootfs.MkfsExt4, err)
	}
	if err != nil {
		return place{}, err
	}
	defer image.Close()
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Plug.Std())
	defer cancel()
	at, err := m.vm.Attach(ctx, hypervisor.Disk{
		ID: d.name, Driver: hypervisor.DriverRaw, Path: filepath.Join(v.Dir, emptydir.ImageName), Files: []*os.File{image},
	})
	if err != nil {
		return place{}, err
	}
	p := placeOf(at)
	d.at = &p
	m.empty.mu.Lock()
	m.empty.attached = true
	m.empty.mu.Unlock()
	return p, nil
}

// emptyDirJournal is the least journal that ext4 has. The kubelet counts what the
// image has of the disk against the volume's sizeLimit, and a journal is written
// round and round: a pod with a small limit would be evicted for a few lines of log.
const emptyDirJournal = 4

// makeEmptyDirImage makes a sparse image with a filesystem in it.
func (m *machine) makeEmptyDirImage(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Plan.Std())
	defer cancel()
	maker := ext4.Maker{Mkfs: m.cfg.Rootfs.MkfsExt4, Dir: filepath.Join(m.cfg.CacheDir, "ext4")}
	return maker.Make(ctx, path, ext4.Format{
		FS: "ext4", Size: int64(m.cfg.Mounts.EmptyDirMiB) << 20, UUID: uuid.New(), JournalMiB: emptyDirJournal,
	})
}

// settle has the guest write back what containers have left in volumes on disk, of
// which there is a next VM if the pod outlives this one. What hinders it hinders the
// end of the VM no longer than a call may take.
func (m *machine) settle(ctx context.Context) {
	if !m.empty.onDisk() || !m.alive() {
		return
	}
	if err := m.agent.DestroySandbox(ctx); err != nil {
		m.log.WithError(err).Warn("what the pod wrote last into its emptyDirs may be missing in their images")
	}
}

// onDisk says whether the VM has had the disk of any volume.
func (all *emptyDirs) onDisk() bool {
	all.mu.Lock()
	defer all.mu.Unlock()
	return all.attached
}
