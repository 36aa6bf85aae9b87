package storage

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mountFS mounts a filesystem at target with the mount calls of Linux 5.2,
// which take an option at a time (an overlay of 100 layers does not fit into
// the one page of mount(2)) and say in words what was wrong.
func mountFS(fstype string, super []string, attrs int, target string) error {
	fail := func(step string, err error, fs int) error {
		if text := kernelMessages(fs); text != "" {
			return fmt.Errorf("mount %s at %s: %s: %w (kernel: %s)", fstype, target, step, err, text)
		}
		return fmt.Errorf("mount %s at %s: %s: %w", fstype, target, step, err)
	}
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("fsopen", err, -1)
	}
	defer unix.Close(fs)
	for _, option := range super {
		if key, value, ok := split(option); ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return fail("option "+option, err, fs)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fail("fsconfig", err, fs)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return fail("fsmount", err, fs)
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail("move_mount", err, -1)
	}
	return nil
}

// bind mounts source a second time at target, with other attributes.
func bind(source, target string, attrs uint64) error {
	fail := func(err error) error { return fmt.Errorf("bind %s at %s: %w", source, target, err) }
	mnt, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(mnt)
	if err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs}); err != nil {
		return fail(err)
	}
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail(err)
	}
	return nil
}

// kernelMessages reads what a filesystem context has to say of its last error;
// each read gives one line, marked e, w or i.
func kernelMessages(fs int) string {
	if fs < 0 {
		return ""
	}
	var lines []string
	buf := make([]byte, 1024)
	for len(lines) < 8 {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
	return strings.Join(lines, "; ")
}

// writeBack returns when everything that was written below path is on its disk.
func writeBack(path string) error {
	dir, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(dir)
	return os.NewSyscallError("syncfs", unix.Syncfs(dir))
}

// unmount takes the mount away from path. One that is busy is an error, not
// detached behind the back: the disk below is about to be pulled.
func unmount(path string) error {
	if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "unmount", Path: path, Err: err}
	}
	return nil
}

// removeDir removes an empty directory; one that is not there is no error.
func removeDir(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
