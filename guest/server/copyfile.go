package server

import (
	"bytes"
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
	"github.com/erofsvm/erofsvm/guest/container"
)

const (
	maxFile  = 64 << 20 // bytes of one file: it lies in the guest's memory
	maxDepth = 32
	// partial marks a file that is not whole yet.
	partial = ".erofsvm-partial"
)

// CopyFile writes one piece of a file, or makes a directory or a symbolic link.
// Pieces come in order; the file gets its name, owner and mode with the last
// one, so that nobody reads half of it.
func (a *agent) CopyFile(_ context.Context, r *pb.CopyFileRequest) (*emptypb.Empty, error) {
	dirs, name, err := splitPath(a.sandbox.Base, r.GetPath())
	if err != nil {
		return nil, err
	}
	make, err := checkKind(r)
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", r.GetPath(), err)
	}
	dir, err := openDirs(a.sandbox.Base, dirs, r.GetDirMode()&0o7777)
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", r.GetPath(), err)
	}
	defer unix.Close(dir)
	if err := make(dir, name, r); err != nil {
		return nil, fmt.Errorf("copy %s: %w", r.GetPath(), err)
	}
	return empty, nil
}

// checkKind returns what makes the kind of file that r is for.
func checkKind(r *pb.CopyFileRequest) (func(dir int, name string, r *pb.CopyFileRequest) error, error) {
	left := r.GetFileSize() - int64(len(r.GetData())) // where the last piece would begin
	switch kind := r.GetFileMode() & unix.S_IFMT; {
	case kind == unix.S_IFDIR && r.GetOffset() == 0 && len(r.GetData()) == 0:
		return makeDir, nil
	case kind == unix.S_IFLNK && r.GetOffset() == 0 && left == 0 && len(r.GetData()) > 0 && len(r.GetData()) < unix.PathMax && !bytes.Contains(r.GetData(), []byte{0}):
		return makeLink, nil
	case kind == unix.S_IFDIR || kind == unix.S_IFLNK:
		return nil, fmt.Errorf("%d bytes at %d of %d are no directory and no target of a link: %w", len(r.GetData()), r.GetOffset(), r.GetFileSize(), errdefs.ErrInvalidArgument)
	case kind != unix.S_IFREG && kind != 0:
		return nil, fmt.Errorf("mode %o: only files, directories and symbolic links: %w", r.GetFileMode(), errdefs.ErrNotImplemented)
	case r.GetFileSize() < 0 || r.GetFileSize() > maxFile:
		return nil, fmt.Errorf("%d bytes, at most %d: %w", r.GetFileSize(), maxFile, errdefs.ErrInvalidArgument)
	case r.GetOffset() < 0 || r.GetOffset() > left:
		return nil, fmt.Errorf("%d bytes at %d of %d: %w", len(r.GetData()), r.GetOffset(), r.GetFileSize(), errdefs.ErrInvalidArgument)
	}
	return writePiece, nil
}

// splitPath takes an absolute path apart, which must be where copies go. Names
// are those below base.
func splitPath(base, path string) (dirs []string, name string, err error) {
	copies := filepath.Join(base, container.Copies)
	if !strings.HasPrefix(path, copies+"/") || len(path) >= unix.PathMax || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return nil, "", fmt.Errorf("path %.256q, want a clean one below %s: %w", path, copies, errdefs.ErrInvalidArgument)
	}
	rel := strings.TrimPrefix(path, base+"/")
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

// makeDir makes a directory, or gives the one that is there the owner and mode.
func makeDir(dir int, name string, r *pb.CopyFileRequest) error {
	if err := unix.Mkdirat(dir, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: confined})
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	return own(fd, r)
}

// makeLink makes a symbolic link, in the place of a file that is there. It is
// never followed from here, so its target is the container's affair.
func makeLink(dir int, name string, r *pb.CopyFileRequest) error {
	if err := unix.Unlinkat(dir, name+partial, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: name + partial, Err: err}
	}
	if err := unix.Symlinkat(string(r.GetData()), dir, name+partial); err != nil {
		return &os.PathError{Op: "symlink", Path: name, Err: err}
	}
	if err := unix.Fchownat(dir, name+partial, int(r.GetUid()), int(r.GetGid()), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if err := unix.Renameat(dir, name+partial, dir, name); err != nil {
		return &os.PathError{Op: "rename", Path: name, Err: err}
	}
	return nil
}

// own gives an open file its owner and mode, in this order: a change of owner
// takes bits of the mode away.
func own(fd int, r *pb.CopyFileRequest) error {
	if err := unix.Fchown(fd, int(r.GetUid()), int(r.GetGid())); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	if err := unix.Fchmod(fd, r.GetFileMode()&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	return nil
}

func writePiece(dir int, name string, r *pb.CopyFileRequest) error {
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
	if r.GetOffset()+int64(len(r.GetData())) < r.GetFileSize() {
		return nil
	}
	if err := own(fd, r); err != nil {
		return err
	}
	if err := unix.Renameat(dir, name+partial, dir, name); err != nil {
		return &os.PathError{Op: "rename", Path: name, Err: err}
	}
	return nil
}
