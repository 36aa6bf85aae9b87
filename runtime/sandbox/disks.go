package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/ext4"
	"github.com/erofsvm/erofsvm/rootfs/merge"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// plan turns the mounts into disks and storages. The plan is the caller's to
// close, once the disks are attached.
func (m *machine) plan(ctx context.Context, mounts []rootfs.Mount) (*rootfs.Plan, error) {
	begun := time.Now()
	defer m.trace.phase("plan", begun)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Plan.Std())
	defer cancel()
	planner := rootfs.NewPlanner(rootfs.Options{
		CacheDir:    filepath.Join(m.cfg.CacheDir, "merge"),
		CacheBytes:  int64(m.cfg.Rootfs.CacheMiB) << 20,
		MkfsErofs:   m.cfg.Rootfs.MkfsErofs,
		Layers:      rootfs.Layers(m.cfg.Rootfs.Layers),
		Partitions:  true,
		MakeUpper:   true,
		MemoryUpper: int64(m.cfg.Rootfs.MemoryUpperMiB) << 20,
		Discard:     m.cfg.Rootfs.Discard,
		Lend:        !m.cfg.Debug.PlainPaths,
	})
	plan, err := planner.Plan(ctx, mounts)
	if err != nil {
		return nil, m.planError(err)
	}
	m.log.WithField("strategy", plan.Strategy).Infof("rootfs planned: %s", plan.Reason)
	for _, w := range plan.Warnings {
		m.log.Warnf("rootfs: %s", w)
	}
	return plan, nil
}

// planError names the key of the configuration that an error is about.
func (m *machine) planError(err error) error {
	var refusal *rootfs.Refusal
	switch {
	case errors.Is(err, merge.ErrTool):
		return fmt.Errorf("rootfs.mkfs_erofs = %q: %w", m.cfg.Rootfs.MkfsErofs, err)
	case errors.As(err, &refusal) && refusal.Class == rootfs.ClassHostUpper && m.cfg.Rootfs.MemoryUpperMiB == 0:
		return fmt.Errorf("rootfs: %w; or let guest memory take its place, with rootfs.memory_upper_mib above 0", err)
	}
	return fmt.Errorf("rootfs: %w", err)
}

// attach gives the plan's disks to the VM and returns the storages with the
// addresses at which the guest finds them. After a VM that is no more it may be called
// again, for the next one.
func (m *machine) attach(ctx context.Context, c *container, plan *rootfs.Plan) ([]*pb.Storage, error) {
	begun := time.Now()
	defer m.trace.phase("attach", begun)
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("container's directory: %w", err)
	}
	places := make([]place, len(plan.Disks))
	c.disks = make([]attached, len(plan.Disks))
	var all errgroup.Group
	for i, d := range plan.Disks {
		c.disks[i].id = fmt.Sprintf("c%d-%s-%d", c.serial, d.Role, i)
		all.Go(func() (err error) {
			places[i], err = m.attachDisk(ctx, c.disks[i].id, c.dir, plan, d)
			c.disks[i].place = places[i]
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	for i, d := range plan.Disks {
		m.layers.add(places[i].source, d)
	}
	m.trace.disks(plan, places)
	return storages(plan, places, guestRootfs(c.id)), nil
}

// attached is a disk that a container has in the VM, or may have after an error.
type attached struct {
	id    string
	place place
}

// place is where the guest finds a disk, in the words of the agent's protocol.
type place struct{ driver, source string }

func placeOf(a hypervisor.Attachment) place {
	if a.SCSI != "" {
		return place{"scsi", a.SCSI}
	}
	return place{"blk", a.PCIPath}
}

func (m *machine) attachDisk(ctx context.Context, id, dir string, plan *rootfs.Plan, d rootfs.Disk) (place, error) {
	disk, done, err := m.disk(ctx, dir, plan, d)
	if err != nil {
		return place{}, err
	}
	defer done()
	disk.ID = id
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Plug.Std())
	defer cancel()
	at, err := m.vm.Attach(ctx, disk)
	return placeOf(at), err
}

// disk is what the VM is given for a disk of the plan. What is still to be made
// of it is made here. done closes the files that are not the plan's, when the VM
// has them.
func (m *machine) disk(ctx context.Context, dir string, plan *rootfs.Plan, d rootfs.Disk) (disk hypervisor.Disk, done func(), err error) {
	disk = hypervisor.Disk{Driver: hypervisor.Driver(d.Driver), Path: d.Path, ReadOnly: d.ReadOnly}
	var made *os.File
	switch {
	case d.Format != nil:
		made, err = m.format(ctx, d)
	case d.Generated != nil && !m.cfg.Debug.PlainPaths:
		made, err = d.Generated.Open()
	}
	if err != nil {
		return disk, nil, err
	}
	done = func() {
		if made != nil {
			made.Close()
		}
	}
	switch {
	case m.cfg.Debug.PlainPaths && d.Driver == rootfs.DriverVMDK:
		disk.Path, err = vmdk.WriteDisk(dir, string(d.Role)+".vmdk", d.Extents, d.Generated)
	case m.cfg.Debug.PlainPaths:
	case d.Driver == rootfs.DriverVMDK:
		disk.Path = string(d.Role) + ".vmdk" // there is no file of that name
		err = lendExtents(&disk, plan, d, made)
	case made != nil:
		disk.Files = []*os.File{made}
	default:
		disk.Files = []*os.File{plan.File(d.Path)}
	}
	if err != nil {
		done()
		return disk, nil, err
	}
	return disk, done, nil
}

// format makes the filesystem of a writable image that is not there yet.
func (m *machine) format(ctx context.Context, d rootfs.Disk) (*os.File, error) {
	begun := time.Now()
	defer m.trace.phase("mkfs", begun)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Plan.Std())
	defer cancel()
	maker := ext4.Maker{Mkfs: m.cfg.Rootfs.MkfsExt4, Dir: filepath.Join(m.cfg.CacheDir, "ext4")}
	f, err := maker.Make(ctx, d.Path, *d.Format)
	if errors.Is(err, ext4.ErrTool) {
		err = fmt.Errorf("rootfs.mkfs_ext4 = %q: %w", m.cfg.Rootfs.MkfsExt4, err)
	}
	return f, err
}

// lendExtents hands over the files behind the extents, each once, and a
// descriptor that speaks of them by the names that QEMU gives them.
func lendExtents(disk *hypervisor.Disk, plan *rootfs.Plan, d rootfs.Disk, generated *os.File) error {
	index := map[string]int{}
	for _, e := range d.Extents {
		if _, ok := index[e.Path]; ok {
			continue
		}
		file := generated
		if e.Path != "" {
			file = plan.File(e.Path)
		}
		if file == nil {
			return fmt.Errorf("extent %q is not among the files of the plan", e.Path)
		}
		index[e.Path] = len(disk.Files)
		disk.Files = append(disk.Files, file)
	}
	disk.Descriptor = func(names []string) ([]byte, error) {
		extents := slices.Clone(d.Extents)
		for i, e := range extents {
			extents[i].Path = names[index[e.Path]]
		}
		return vmdk.Descriptor(extents)
	}
	return nil
}

// storages are those of the plan with the addresses of their disks.
func storages(plan *rootfs.Plan, places []place, rootfsPath string) []*pb.Storage {
	list := make([]*pb.Storage, 0, len(plan.Storages))
	for _, st := range plan.Storages {
		at := place{"ephemeral", st.FSType} // in guest memory
		if st.Disk != rootfs.NoDisk {
			at = places[st.Disk]
		}
		list = append(list, &pb.Storage{
			Driver: at.driver, Source: at.source, Fstype: st.FSType,
			Options: st.Options, MountPoint: rootfsPath,
		})
	}
	return list
}

// detach takes a container's disks from a VM that lives on.
func (m *machine) detach(ctx context.Context, c *container) error {
	if !m.alive() {
		return nil
	}
	var errs []error
	for _, d := range c.disks {
		dctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Unplug.Std())
		if err := m.vm.Detach(dctx, d.id); err != nil {
			errs = append(errs, err)
		} else {
			m.layers.remove(d.place.source)
		}
		cancel()
	}
	return errors.Join(errs...)
}
