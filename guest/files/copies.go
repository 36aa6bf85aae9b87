package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// Copies is the directory of the copies of the host's files, one below it for each
// container. A container may write to what it has mounts of, and so put links
// there: none is followed.
type Copies string

// serveFetch sends the end of a file.
func (c Copies) serveFetch(conn net.Conn, r streamwire.Request) error {
	content, err := c.tail(r)
	if err := answer(conn, err); err != nil {
		return err
	}
	out := &outgoing{conn: conn}
	if _, err := out.Write(content); err != nil {
		return err
	}
	return finish(conn, streamwire.SendEnd(conn))
}

// tail is the end of the file that a request names.
func (c Copies) tail(r streamwire.Request) ([]byte, error) {
	dir, err := c.open(r)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), r.Path, &unix.OpenHow{
		// A fifo that took the place of the file must not be waited for.
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: r.Path, Err: err}
	}
	file := os.NewFile(uintptr(fd), r.Path)
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: %w", r.Path, errdefs.ErrInvalidArgument)
	}
	from := max(0, info.Size()-streamwire.MaxFetch)
	return io.ReadAll(io.NewSectionReader(file, from, streamwire.MaxFetch))
}

// serveRemove removes what a request names.
func (c Copies) serveRemove(conn net.Conn, r streamwire.Request) error {
	if err := answer(conn, c.remove(r)); err != nil {
		return err
	}
	return finish(conn, nil)
}

func (c Copies) remove(r streamwire.Request) error {
	dir, err := c.open(r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	root, err := confined(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.RemoveAll(r.Path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// open opens the directory of a container's copies, below which the request must
// name something.
func (c Copies) open(r streamwire.Request) (*os.File, error) {
	if filepath.Base(r.Container) != r.Container || r.Container == "." || r.Container == ".." {
		return nil, fmt.Errorf("container %q: %w", r.Container, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsLocal(r.Path) || filepath.Clean(r.Path) != r.Path || r.Path == "." || strings.ContainsRune(r.Path, 0) {
		return nil, fmt.Errorf("path %.256q of a copy: %w", r.Path, errdefs.ErrInvalidArgument)
	}
	return os.Open(filepath.Join(string(c), r.Container))
}
