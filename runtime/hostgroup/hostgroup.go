// Package hostgroup puts a process of the host, and with it those that it starts
// from then on, into a cgroup: Join into one that a client of containerd has made
// for a shim, a Group into one that it makes for a sandbox. There they are counted,
// and limited by what is above.
//
// It makes cgroups of version 1 and 2, by itself or, where the name asks for it, by
// systemd, and removes them again; it sets no limit and never kills a process.
// Its functions may be called from any goroutine.
package hostgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// mountTable lists what the process has mounted (proc(5)).
const mountTable = "/proc/self/mountinfo"

// Join moves a process into the cgroup of a path, such as "/pods/a", in each
// hierarchy of the host that has it, of either version. It is an error of class
// errdefs.ErrNotFound if none has.
func Join(pid int, path string) error {
	mounts, err := os.Open(mountTable)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	defer mounts.Close()
	return join(mounts, pid, path)
}

func join(mounts io.Reader, pid int, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("cgroup %q is not an absolute path: %w", path, errdefs.ErrInvalidArgument)
	}
	points, err := hierarchies(mounts)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	found := false
	for _, point := range points {
		// Not created: a cgroup that is made by its name is nobody's to remove.
		procs, err := os.OpenFile(filepath.Join(point, path, "cgroup.procs"), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("join cgroup %s: %w", path, err)
		}
		_, err = procs.WriteString(strconv.Itoa(pid))
		if err := errors.Join(err, procs.Close()); err != nil {
			return fmt.Errorf("join cgroup %s: %w", path, err)
		}
		found = true
	}
	if !found {
		return fmt.Errorf("cgroup %s is in no hierarchy of the host: %w", path, errdefs.ErrNotFound)
	}
	return nil
}

// hierarchies are the mount points of cgroups. One of which only a part is
// mounted does not count: the paths in it are others.
func hierarchies(mounts io.Reader) ([]string, error) {
	var points []string
	for lines := bufio.NewScanner(mounts); ; {
		if !lines.Scan() {
			return points, lines.Err()
		}
		// id parent major:minor root point options… - type source options
		place, kind, _ := strings.Cut(lines.Text(), " - ")
		fields, kinds := strings.Fields(place), strings.Fields(kind)
		if len(fields) < 5 || len(kinds) < 1 || fields[3] != "/" || kinds[0] != "cgroup" && kinds[0] != "cgroup2" {
			continue
		}
		// The kernel writes blanks and backslashes in octal.
		point, err := strconv.Unquote(`"` + strings.ReplaceAll(fields[4], `"`, `\"`) + `"`)
		if err != nil {
			return nil, fmt.Errorf("mount table: %q: %w", fields[4], err)
		}
		points = append(points, point)
	}
}
