package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// group is a cgroup of version 2 without controllers: the set of all processes
// that descend from the first one put into it, however often they daemonize.
type group struct {
	dir string
}

// newGroup makes the group, or takes over one that an earlier run left behind.
func newGroup(name string) (*group, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find the cgroup2 mount: %w", err)
	}
	if len(mounts) == 0 {
		return nil, errors.New("find the cgroup2 mount: there is none; mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	dir := filepath.Join(mounts[0].Mountpoint, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	return &group{dir: dir}, nil
}

// open returns the descriptor that SysProcAttr.CgroupFD wants.
func (g *group) open() (*os.File, error) {
	return os.OpenFile(g.dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
}

// inGroup makes a child start inside the group that open has opened.
func inGroup(cgroup *os.File) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
}

// pids lists the processes of the group and of groups made inside it.
func (g *group) pids() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(g.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "cgroup.procs" {
			return ignoreGone(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return ignoreGone(err)
		}
		for line := range strings.Lines(string(data)) {
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

// waitEmpty waits until no process but the given one is left, and otherwise
// returns those that are when ctx ends.
func (g *group) waitEmpty(ctx context.Context, but int) (left []int, err error) {
	for {
		pids, err := g.pids()
		if err != nil {
			return nil, err
		}
		left = left[:0]
		for _, pid := range pids {
			if pid != but && !exited(pid) {
				left = append(left, pid)
			}
		}
		if len(left) == 0 || ctx.Err() != nil {
			return left, nil
		}
		if _, err := waitExit(ctx, left[0]); err != nil {
			return nil, err
		}
	}
}

// kill ends every process of the group at once and removes the group.
func (g *group) kill(ctx context.Context) error {
	if err := os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill what is left: %w", err)
	}
	left, err := g.waitEmpty(ctx, 0)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("processes survive SIGKILL: %s", describe(left))
	}
	return g.remove(ctx)
}

// waitUnpopulated waits until the kernel says that the group has no process.
// cgroup.events wakes up a poll when it changes (Documentation/admin-guide/
// cgroup-v2.rst, "cgroup.events").
func (g *group) waitUnpopulated(ctx context.Context) error {
	events, err := os.Open(filepath.Join(g.dir, "cgroup.events"))
	if err != nil {
		return ignoreGone(err)
	}
	defer events.Close()
	text := make([]byte, 256)
	for {
		size, err := events.ReadAt(text, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return ignoreGone(err)
		}
		if strings.Contains(string(text[:size]), "populated 0") {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for an empty cgroup %s: %w", g.dir, err)
		}
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, untilDeadline(ctx)); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// untilDeadline is the time that ctx has left, in milliseconds as poll(2) wants
// it.
func untilDeadline(ctx context.Context) int {
	deadline, ok := ctx.Deadline()
	if !ok {
		return -1
	}
	return int((max(0, time.Until(deadline)) + time.Millisecond - 1).Milliseconds())
}

// remove removes the group, whose processes have exited.
func (g *group) remove(ctx context.Context) error {
	// They count as exited before the cgroup has let go of them.
	if err := g.waitUnpopulated(ctx); err != nil {
		return err
	}
	var dirs []string
	err := filepath.WalkDir(g.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return ignoreGone(err)
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = ignoreGone(os.Remove(dirs[i]))
	}
	return err
}

// waitExit waits until the process has exited or ctx has ended, and says whether
// it has. A process that its parent has not waited for has exited too.
func waitExit(ctx context.Context, pid int) (bool, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: a thread, of a leader that is gone
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if ready, err := unix.Poll(poll, untilDeadline(ctx)); !errors.Is(err, unix.EINTR) {
			return ready > 0, err
		}
	}
}

// exited says whether all threads of a process have ended. That its leader is a
// zombie is not enough.
func exited(pid int) bool {
	now, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	done, err := waitExit(now, pid)
	return err == nil && done
}

// describe names processes by pid and command line.
func describe(pids []int) string {
	var parts []string
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		text := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		parts = append(parts, fmt.Sprintf("%d (%.160s)", pid, text))
	}
	return strings.Join(parts, ", ")
}
