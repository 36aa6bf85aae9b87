package agentclient

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// File describes what CopyFile, CopyDir and CopyLink make in the guest.
type File struct {
	Path    string // absolute, below /run/kata-containers
	Size    int64  // bytes; of a regular file
	Mode    uint32 // as in stat(2); the type bits are those of the call
	DirMode uint32 // of directories above it that are missing
	UID     int32
	GID     int32
}

// CopyFile makes a file in the guest from content, in messages of at most
// MaxChunk, each with the deadline Copy. The file appears under its name only
// when it is whole.
func (c *Client) CopyFile(ctx context.Context, f File, content io.Reader) error {
	if f.Size < 0 {
		return fmt.Errorf("copy %s to the guest: size %d: %w", f.Path, f.Size, errdefs.ErrInvalidArgument)
	}
	buf := make([]byte, min(f.Size, MaxChunk))
	for offset := int64(0); ; {
		n := min(f.Size-offset, int64(len(buf)))
		if _, err := io.ReadFull(content, buf[:n]); err != nil {
			return fmt.Errorf("copy %s to the guest: read at %d of %d: %w", f.Path, offset, f.Size, err)
		}
		_, err := call(ctx, "CopyFile", c.deadlines.Copy, c.agent.CopyFile, &pb.CopyFileRequest{
			Path: f.Path, FileSize: f.Size, FileMode: f.Mode&^unix.S_IFMT | unix.S_IFREG, DirMode: f.DirMode,
			Uid: f.UID, Gid: f.GID, Offset: offset, Data: buf[:n],
		})
		if err != nil {
			return fmt.Errorf("copy %s to the guest: %w", f.Path, err)
		}
		if offset += n; offset >= f.Size {
			return nil
		}
	}
}

// maxLink is the longest target of a symbolic link, in bytes (PATH_MAX less the
// zero at its end).
const maxLink = unix.PathMax - 1

// CopyDir makes a directory in the guest. One that is there keeps its content
// and gets the mode and the owner.
func (c *Client) CopyDir(ctx context.Context, f File) error {
	return c.copyOne(ctx, f, unix.S_IFDIR, nil)
}

// CopyLink makes a symbolic link in the guest. The target is not looked at.
func (c *Client) CopyLink(ctx context.Context, f File, target string) error {
	if target == "" || len(target) > maxLink {
		return fmt.Errorf("copy %s to the guest: a link to a path of %d bytes: %w", f.Path, len(target), errdefs.ErrInvalidArgument)
	}
	return c.copyOne(ctx, f, unix.S_IFLNK, []byte(target))
}

func (c *Client) copyOne(ctx context.Context, f File, kind uint32, data []byte) error {
	_, err := call(ctx, "CopyFile", c.deadlines.Copy, c.agent.CopyFile, &pb.CopyFileRequest{
		Path: f.Path, FileSize: int64(len(data)), FileMode: f.Mode&^unix.S_IFMT | kind, DirMode: f.DirMode,
		Uid: f.UID, Gid: f.GID, Data: data,
	})
	if err != nil {
		return fmt.Errorf("copy %s to the guest: %w", f.Path, err)
	}
	return nil
}
