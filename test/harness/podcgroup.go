package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// PodCgroup is the cgroup that a kubelet makes for a pod before it asks for its
// sandbox, in every hierarchy of the host.
type PodCgroup struct {
	// Path is what the kubelet's driver cgroupfs gives as cgroup_parent.
	Path string
	dirs []string
}

// PodCgroup makes one below the daemon's own. Remove must be called.
func (c *Containerd) PodCgroup(uid string) (_ *PodCgroup, err error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("cgroup of pod %s: %w", uid, err)
	}
	g := &PodCgroup{Path: path.Join(c.Cgroup(), "kubepods", "pod"+uid)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cgroup of pod %s: %w", uid, err), g.Remove())
		}
	}()
	for _, m := range mounts {
		dir := filepath.Join(m.Mountpoint, g.Path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		g.dirs = append(g.dirs, dir)
		for _, each := range append(above(dir), dir) {
			if err := inheritCpuset(each); err != nil {
				return nil, err
			}
		}
	}
	return g, nil
}

// above are the cgroups of all pods, and of the daemon, in the order in which they
// were made.
func above(dir string) []string {
	return []string{filepath.Dir(filepath.Dir(dir)), filepath.Dir(dir)}
}

// inheritCpuset gives a cpuset of version 1 the processors and memory of its parent,
// without which it takes no process.
func inheritCpuset(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(text)) == "" {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), text, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// removePodCgroups removes what a run that was killed has left of its pods' cgroups in
// hierarchies other than the daemon's own, which goes with its group. No process is in
// any of them by then.
func (c *Containerd) removePodCgroups() error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		return fmt.Errorf("cgroups of pods: %w", err)
	}
	var errs []error
	for _, m := range mounts {
		var dirs []string
		err := filepath.WalkDir(filepath.Join(m.Mountpoint, c.Cgroup()), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return ignoreGone(err)
		})
		errs = append(errs, err)
		for i := len(dirs) - 1; i >= 0; i-- {
			errs = append(errs, ignoreGone(os.Remove(dirs[i])))
		}
	}
	return errors.Join(errs...)
}

// Left are the processes and cgroups that are in it.
func (g *PodCgroup) Left() ([]string, error) {
	var left []string
	for _, dir := range g.dirs {
		list, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if e.IsDir() {
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
		pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return nil, err
		}
		for pid := range strings.Lines(string(pids)) {
			left = append(left, "process "+strings.TrimSpace(pid)+" in "+dir)
		}
	}
	return left, nil
}

// Remove removes it, as the kubelet does with a pod, which works only if nothing is in
// it. What is above it goes with the last pod.
func (g *PodCgroup) Remove() error {
	var errs []error
	for _, dir := range g.dirs {
		errs = append(errs, ignoreGone(os.Remove(dir)))
		for _, up := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
			_ = os.Remove(up) // while it has others, or the daemon, it stays
		}
	}
	return errors.Join(errs...)
}
