package k8s

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// groupOf is the name of the cgroup below which all of a run's are.
func groupOf(dir string) string { return filepath.Base(dir) }

// hierarchies are the mount points of cgroups, of both versions.
func hierarchies() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find the mounts of cgroups: %w", err)
	}
	var points []string
	for _, m := range mounts {
		if m.Root == "/" {
			points = append(points, m.Mountpoint)
		}
	}
	return points, nil
}

// makeGroups makes the cgroup of the run in every hierarchy: the kubelet wants it to
// be there.
func makeGroups(name string) error {
	points, err := hierarchies()
	if err != nil {
		return err
	}
	for _, point := range points {
		if err := os.Mkdir(filepath.Join(point, name), 0o755); err != nil {
			return fmt.Errorf("make a cgroup: %w", err)
		}
		// A new cpuset of version 1 is empty, and takes no process.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			text, err := os.ReadFile(filepath.Join(point, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(point, name, file), text, 0)
			}
			if err != nil {
				return fmt.Errorf("make a cpuset: %w", err)
			}
		}
	}
	return nil
}

// groupsOfPods lists the cgroups that the kubelet and runtimes have made for pods.
func groupsOfPods(name string) ([]string, error) {
	all, err := groups(name)
	var found []string
	for _, dir := range all {
		if strings.Contains(strings.TrimPrefix(dir, name), "/pod") {
			found = append(found, dir)
		}
	}
	return found, err
}

// groups lists the cgroup of the run and all below it, in every hierarchy.
func groups(name string) ([]string, error) {
	points, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, point := range points {
		err := filepath.WalkDir(filepath.Join(point, name), func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && entry.IsDir() {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("look for cgroups: %w", err)
		}
	}
	return found, nil
}

// removeGroups removes what makeGroups made, and what was made below it since.
func removeGroups(name string) error {
	found, err := groups(name)
	for i := len(found) - 1; i >= 0; i-- {
		err = errors.Join(err, os.Remove(found[i]))
	}
	return err
}
