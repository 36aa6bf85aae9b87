package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Shims are the pids of the shims that serve sandboxes of this containerd. The
// same program run for `start`, `delete` or -info is not one, nor is a child of
// a shim that has yet to become another program.
func (c *Containerd) Shims() ([]int, error) {
	pids, err := c.running("containerd-shim-erofsvm-v2")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(pids), func(pid int) bool {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		helper := slices.Contains([]string{"start", "delete", "-info"}, args[len(args)-1])
		return err != nil || helper || slices.Contains(pids, parent(pid))
	}), nil
}

// parent is the pid of a process's parent, 0 if the process is gone.
func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// proc(5): "pid (comm) state ppid …"; the name can have anything in it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return ppid
}

// VMs are the pids of the QEMUs that descend from this containerd.
func (c *Containerd) VMs() ([]int, error) {
	return c.running("qemu-system-x86_64")
}

func (c *Containerd) running(program string) ([]int, error) {
	pids, err := c.group.pids()
	if err != nil {
		return nil, err
	}
	var found []int
	for _, pid := range pids {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && filepath.Base(exe) == program {
			found = append(found, pid)
		}
	}
	return found, nil
}

// WaitExit waits until a process has exited and says whether it has, before ctx
// ended.
func WaitExit(ctx context.Context, pid int) (bool, error) {
	return waitExit(ctx, pid)
}

// WaitForSandbox waits until a sandbox has its directory in the shim's
// state_dir, which is when its VM begins to boot.
func (c *Containerd) WaitForSandbox(ctx context.Context) error {
	return WaitForEntry(ctx, c.dirs.sandboxes)
}

// WaitForEntry waits until a directory is not empty.
func WaitForEntry(ctx context.Context, dir string) error {
	watch, err := watchPath(ctx, dir, unix.IN_CREATE|unix.IN_MOVED_TO)
	if err != nil {
		return err
	}
	defer watch.Close()
	if list, err := entries(dir); err != nil || len(list) > 0 {
		return err
	}
	return waitForEvent(watch, "appears in "+dir)
}

// DuringWrites calls begin, and returns when a file has been written to after that.
func DuringWrites(ctx context.Context, file string, begin func()) error {
	watch, err := watchPath(ctx, file, unix.IN_MODIFY)
	if err != nil {
		return err
	}
	defer watch.Close()
	begin()
	return waitForEvent(watch, "is written to "+file)
}

// watchPath watches a path until the deadline of ctx.
func watchPath(ctx context.Context, path string, events uint32) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, events); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", path, err), watch.Close())
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := watch.SetReadDeadline(deadline); err != nil {
			return nil, errors.Join(err, watch.Close())
		}
	}
	return watch, nil
}

func waitForEvent(watch *os.File, what string) error {
	_, err := watch.Read(make([]byte, 4096))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("nothing %s: %w", what, err)
	}
	return err
}

// VsockDaemons are the pids of the vhost-user vsock daemons that descend from
// this containerd.
func (c *Containerd) VsockDaemons() ([]int, error) {
	return c.running("vhost-device-vsock")
}

// WaitProcesses waits until only the daemon is left of the processes that
// descend from it, and returns the others that run when ctx ends.
func (c *Containerd) WaitProcesses(ctx context.Context) ([]int, error) {
	return c.group.waitEmpty(ctx, c.Pid())
}

// Mentioning lists the processes with a text in their command line.
func Mentioning(text string) ([]string, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, file := range files {
		cmdline, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(cmdline), text) {
			found = append(found, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found, nil
}
