package hostgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/fscommon"
	"golang.org/x/sys/unix"
)

// Group is a cgroup that is made for one sandbox, in each hierarchy of the host but
// that of devices.
// It has no limits of its own: those of a pod are in the cgroup above it, which is
// the kubelet's. Its methods may be called from any goroutine.
type Group struct {
	name    name
	manager cgroups.Manager

	mu   sync.Mutex        // held by Enter and Close
	pid  int               // of the process that was moved, 0 if none is
	home map[string]string // where the process came from, by controller
}

// New returns the cgroup that an OCI spec names (linux.cgroupsPath): by its path,
// such as "/kubepods/pod1/id", or as "slice:prefix:id", which systemd makes: the
// scope prefix-id.scope in the slice. Nothing is made. A cgroup that has processes
// is somebody else's: an error of class errdefs.ErrAlreadyExists.
func New(cgroupsPath string) (*Group, error) {
	g, err := open(cgroupsPath)
	if err != nil {
		return nil, err
	}
	for _, dir := range g.manager.GetPaths() {
		// If it cannot be read, Enter says so; mostly it is not there.
		if pids, err := cgroups.GetPids(dir); err == nil && len(pids) > 0 {
			return nil, fmt.Errorf("cgroup %s has process %d in it already: %w", dir, pids[0], errdefs.ErrAlreadyExists)
		}
	}
	return g, nil
}

func open(cgroupsPath string) (*Group, error) {
	n, err := parse(cgroupsPath)
	if err != nil {
		return nil, err
	}
	// QEMU and its helpers need the devices that the shim can reach: in version 1 they
	// stay where they are in that hierarchy.
	config := &cgroups.Cgroup{Path: n.path, Resources: &cgroups.Resources{SkipDevices: true}}
	g := &Group{name: n}
	if cgroups.IsCgroup2UnifiedMode() {
		g.manager, err = fs2.NewManager(config, "")
	} else {
		g.manager, err = fs.NewManager(config, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", n, err)
	}
	return g, nil
}

// Enter makes the cgroup and moves a process into it; what that starts from then on
// is in it too. After an error the process is where it was and the cgroup is gone.
func (g *Group) Enter(ctx context.Context, pid int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	home, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return fmt.Errorf("cgroups of process %d: %w", pid, err)
	}
	if cgroups.IsCgroup2UnifiedMode() {
		maps.DeleteFunc(home, func(controller, _ string) bool { return controller != "" })
	}
	g.pid, g.home = pid, home
	if g.name.unit != "" {
		err = startScope(ctx, g.name, pid)
	}
	if err == nil {
		// systemd moves it in the hierarchies that it knows of itself.
		err = g.manager.Apply(pid)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make cgroup %s: %w", g.name, err), g.close(context.WithoutCancel(ctx)))
	}
	return nil
}

// Close moves what is in the cgroup to where the process came from, and removes it.
// It may be called more than once, and without Enter does nothing.
func (g *Group) Close(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.close(ctx)
}

func (g *Group) close(ctx context.Context) error {
	if g.pid == 0 {
		return nil
	}
	for controller := range g.home {
		if err := g.goHome(controller); err != nil {
			return fmt.Errorf("leave cgroup %s: %w", g.name, err)
		}
	}
	if err := g.remove(ctx); err != nil {
		return err
	}
	g.pid = 0
	return nil
}

// SendHome moves a process to where the one of Enter came from: one that this has
// started, and whose work is not the sandbox's. Without Enter it does nothing.
func (g *Group) SendHome(pid int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for controller := range g.home {
		root, err := rootOf(controller)
		if err == nil && root != "" {
			err = g.move(root, controller, pid)
		}
		if err != nil {
			return fmt.Errorf("move process %d out of cgroup %s: %w", pid, g.name, err)
		}
	}
	return nil
}

// goHome moves the process back in one hierarchy, with what else there is: a logging
// program, say, that has not ended yet.
func (g *Group) goHome(controller string) error {
	root, err := rootOf(controller)
	if err != nil || root == "" {
		return err
	}
	// Where there is no such cgroup systemd can have moved the process all the same.
	others, err := cgroups.GetPids(g.manager.Path(controller))
	if err != nil && !errors.Is(err, os.ErrNotExist) && g.manager.Path(controller) != "" {
		return err
	}
	pids := append(slices.DeleteFunc(others, func(pid int) bool { return pid == g.pid }), g.pid)
	for _, pid := range pids {
		if err := g.move(root, controller, pid); err != nil {
			return err
		}
	}
	return nil
}

// move moves a process to where the one of Enter came from. What cannot be there, since
// that is gone or takes no more processes, goes to the root.
func (g *Group) move(root, controller string, pid int) error {
	err := cgroups.WriteCgroupProc(filepath.Join(root, filepath.Join("/", g.home[controller])), pid)
	if err != nil {
		err = cgroups.WriteCgroupProc(root, pid)
	}
	if errors.Is(err, unix.ESRCH) { // it has ended
		return nil
	}
	return err
}

// rootOf is where a hierarchy is mounted, "" if it is not: no process could be moved
// away in it then.
func rootOf(controller string) (string, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		return fs2.UnifiedMountpoint, nil
	}
	root, err := cgroups.FindCgroupMountpoint("", controller)
	if cgroups.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(root, cgroups.CgroupProcesses)); err != nil && controller == "" {
		return "", nil // version 2 is not mounted beside version 1
	}
	return root, nil
}

// Remove removes a cgroup that New was asked for, and whose processes have ended.
// That there is none is no error.
func Remove(ctx context.Context, cgroupsPath string) error {
	g, err := open(cgroupsPath)
	if err != nil {
		return err
	}
	return g.remove(ctx)
}

func (g *Group) remove(ctx context.Context) error {
	var err error
	if g.name.unit != "" {
		err = stopScope(ctx, g.name)
	}
	if err := errors.Join(err, g.manager.Destroy()); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", g.name, err)
	}
	return nil
}

// Usage is what the processes of a cgroup use. The limit is that of the cgroup above,
// a very large number for none.
type Usage struct {
	CPU, User, System uint64 // nanoseconds
	Memory, Limit     uint64 // bytes
	InactiveFile      uint64 // bytes of Memory that the host can have back
	Anonymous         uint64 // bytes of Memory that are of no file; that of a guest is mostly shared, and not in here
	Faults, Major     uint64 // page faults, and those that waited for a disk
	Processes         uint64
}

// Usage asks the kernel.
func (g *Group) Usage() (Usage, error) {
	stats, err := g.manager.Stats(&cgroups.StatsOptions{Controllers: cgroups.CPU | cgroups.Memory | cgroups.Pids})
	if err != nil {
		return Usage{}, fmt.Errorf("statistics of cgroup %s: %w", g.name, err)
	}
	memory := stats.MemoryStats
	file, prefix, anonymous := "memory.limit_in_bytes", "total_", "total_rss" // with what is below it, in version 1
	if cgroups.IsCgroup2UnifiedMode() {
		file, prefix, anonymous = "memory.max", "", "anon"
	}
	limit, err := fscommon.GetCgroupParamUint(filepath.Dir(g.manager.Path("memory")), file)
	if err != nil { // the root has none
		limit = math.MaxUint64
	}
	return Usage{
		CPU: stats.CpuStats.CpuUsage.TotalUsage, User: stats.CpuStats.CpuUsage.UsageInUsermode, System: stats.CpuStats.CpuUsage.UsageInKernelmode,
		Memory: memory.Usage.Usage, Limit: min(limit, memory.Usage.Limit), InactiveFile: memory.Stats[prefix+"inactive_file"],
		Faults: memory.Stats[prefix+"pgfault"], Major: memory.Stats[prefix+"pgmajfault"],
		Anonymous: memory.Stats[anonymous],
		Processes: stats.PidsStats.Current,
	}, nil
}
