package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

const (
	maxFile  = 64 << 20 // bytes of one file: it lies in the guest's memory
	maxDepth = 32
	// partial marks a file that is not whole yet.
	partial = ".erofsvm-partial"
)

// CopyFile writes one piece of a file. Pieces come in order; the file gets its
// name, owner and mode with the last one, so that nobody reads half of it.
func (a *agent) CopyFile(_ context.Context, r *pb.CopyFileRequest) (*emptypb.Empty, error) {
	dirs, name, err := splitPath(a.sandbox.Base, r.GetPath())
	if err != nil {
		return nil, err
	}
	left := r.GetFileSize() - int64(len(r.GetData())) // where the last piece would begin
	switch {
	case r.GetFileSize() < 0 || r.GetFileSize() > maxFile:
		return nil, fmt.Errorf("copy %s: %d bytes, at most %d: %w", r.GetPath(), r.GetFileSize(), maxFile, errdefs.ErrInvalidArgument)
	case r.GetOffset() < 0 || r.GetOffset() > left:
		return nil, fmt.Errorf("copy %s: %d bytes at %d of %d: %w", r.GetPath(), len(r.GetData()), r.GetOffset(), r.GetFileSize(), errdefs.ErrInvalidArgument)
	case r.GetFileMode()&unix.S_IFMT != unix.S_IFREG && r.GetFileMode()&unix.S_IFMT != 0:
		return nil, fmt.Errorf("copy %s: only regular files: %w", r.GetPath(), errdefs.ErrNotImplemented)
	}
	dir, err := openDirs(a.sandbox.Base, dirs, r.GetDirMode()&0o7777)
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", r.GetPath(), err)
	}
	defer unix.Close(dir)
	if err := writePiece(dir, name, r, r.GetOffset() == left); err != nil {
		return nil, fmt.Errorf("copy %s: %w", r.GetPath(), err)
	}
	return empty, nil
}

// splitPath takes an absolute path below base apart.
func splitPath(base, path string) (dirs []string, name string, err error) {
	rel, below := strings.CutPrefix(path, base+"/")
	if !below || len(path) >= unix.PathMax || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return nil, "", fmt.Errorf("path %.256q, want a clean one below %s: %w", path, base, errdefs.ErrInvalidArgument)
	}
	names := strings.Split(rel, "/")
	if len(names) > maxDepth {
		return nil, "", fmt.Errorf("path %.256q is more than %d deep: %w", path, maxDepth, errdefs.ErrInvalidArgument)
	}
	return names[:len(names)-1], names[len(names)-1], nil
}

// confined is how a directory below base is opened: not through a link, not
// upwards, and not into a mount, such as the root filesystem of a container.
const confined = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

func openDirs(base string, names []string, mode uint32) (int, error) {
	dir, err := unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: base, Err: err}
	}
	if mode == 0 {
		mode = 0o755
	}
	for _, name := range names {
		if err := unix.Mkdirat(dir, name, mode); err != nil && !errors.Is(err, unix.EEXIST) {
			unix.Close(dir)
			return -1, &os.PathError{Op: "mkdir", Path: name, Err: err}
		}
		next, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: confined})
		unix.Close(dir)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
		dir = next
	}
	return dir, nil
}

func writePiece(dir int, name string, r *pb.CopyFileRequest, last bool) error {
	flags := uint64(unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_CREAT)
	if r.GetOffset() == 0 {
		flags |= unix.O_TRUNC
	}
	fd, err := unix.Openat2(dir, name+partial, &unix.OpenHow{Flags: flags, Mode: 0o600, Resolve: confined})
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	file := os.NewFile(uintptr(fd), name+partial)
	defer file.Close()
	if st, err := file.Stat(); err != nil {
		return err
	} else if st.Size() != r.GetOffset() {
		return fmt.Errorf("a piece at %d where %d bytes are there: %w", r.GetOffset(), st.Size(), errdefs.ErrFailedPrecondition)
	}
	if _, err := file.WriteAt(r.GetData(), r.GetOffset()); err != nil {
		return err
	}
	if !last {
		return nil
	}
	if err := unix.Fchown(fd, int(r.GetUid()), int(r.GetGid())); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	if err := unix.Fchmod(fd, r.GetFileMode()&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if err := unix.Renameat(dir, name+partial, dir, name); err != nil {
		return &os.PathError{Op: "rename", Path: name, Err: err}
	}
	return nil
}
