// Package files is the guest's end of docs/files-wire.md: it writes archives into
// containers, makes archives of what is in them, has sockets for them that
// lead to the host, and gives back or removes their copies of the host's files.
//
// It owns the connections that its listener accepts and the sockets that it
// makes; root filesystems belong to their containers, and are entered by
// descriptors that no path of theirs leads out of. Serve is called once; Sockets
// may be used from any goroutine.
package files

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/guest/accept"
)

// Root opens the root directory of a container with all that is mounted below it,
// for the caller to close. Errors have the class of the refusal:
// errdefs.ErrNotFound for a container that is not known,
// errdefs.ErrFailedPrecondition for one that has ended.
type Root func(container string) (*os.File, error)

// Serve accepts connections until ctx ends or l fails. It closes l, ends every
// connection, and returns when all have ended. The host's connections must be the
// only ones that l accepts, and must bound the size of their writes themselves
// where that is needed.
func Serve(ctx context.Context, l net.Listener, root Root, sockets *Sockets, copies Copies, log *slog.Logger) error {
	err := accept.Each(ctx, l, func(ctx context.Context, conn net.Conn) {
		if err := serve(ctx, conn, root, sockets, copies); err != nil && ctx.Err() == nil {
			log.Warn("operation on files", "error", err.Error())
		}
	})
	if err != nil {
		return fmt.Errorf("accept operations on files: %w", err)
	}
	return nil
}

func serve(ctx context.Context, conn net.Conn, root Root, sockets *Sockets, copies Copies) error {
	_ = conn.SetDeadline(time.Now().Add(streamwire.HelloTimeout))
	r, err := streamwire.ReadRequest(conn)
	_ = conn.SetDeadline(time.Time{})
	if errors.Is(err, streamwire.ErrMalformed) {
		return errors.Join(err, streamwire.WriteAnswer(conn, err))
	}
	if err != nil {
		return fmt.Errorf("read a request: %w", err)
	}
	switch r.Operation {
	case streamwire.Unpack:
		err = serveUnpack(conn, r, root)
	case streamwire.Pack:
		err = servePack(conn, r, root)
	case streamwire.Forward:
		err = sockets.serve(ctx, conn, r)
	case streamwire.Fetch:
		err = copies.serveFetch(conn, r)
	case streamwire.Remove:
		err = copies.serveRemove(conn, r)
	}
	if err != nil {
		return fmt.Errorf("%s %q in container %s: %w", r.Operation, r.Path, r.Container, err)
	}
	return nil
}

func serveUnpack(conn net.Conn, r streamwire.Request, root Root) error {
	dir, err := destination(r, root)
	if err == nil {
		defer dir.Close()
	}
	if err := answer(conn, err); err != nil {
		return err
	}
	archive := &incoming{conn: conn}
	err = unpack(dir, archive, r.Owners)
	// What follows the end of the archive, or an error, is taken all the same: the
	// host reads the answer once it has sent all.
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return err
	}
	return finish(conn, answer(conn, err))
}

// destination is the directory of a request, which is made if it is missing.
func destination(r streamwire.Request, root Root) (*os.Root, error) {
	container, err := root(r.Container)
	if err != nil {
		return nil, err
	}
	defer container.Close()
	dir, err := makeDir(container, r.Path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return confined(dir)
}

func servePack(conn net.Conn, r streamwire.Request, root Root) error {
	dir, name, err := source(r, root)
	if err == nil {
		defer dir.Close()
	}
	if err := answer(conn, err); err != nil {
		return err
	}
	archive := bufio.NewWriterSize(&outgoing{conn: conn}, piece)
	if err := errors.Join(pack(dir, name, r.Entry, archive), archive.Flush()); err != nil {
		return err // and no end: the archive is not whole
	}
	return finish(conn, streamwire.SendEnd(conn))
}

// source is what a request names, as a name in a directory.
func source(r streamwire.Request, root Root) (_ *os.Root, name string, err error) {
	container, err := root(r.Container)
	if err != nil {
		return nil, "", err
	}
	defer container.Close()
	whole := rooted(r.Path)
	if name = path.Base(whole); whole == "/" {
		name = "."
	}
	parent, err := openDir(container, path.Dir(whole))
	if err != nil {
		return nil, "", err
	}
	defer parent.Close()
	dir, err := confined(parent)
	if err != nil {
		return nil, "", err
	}
	if _, err := dir.Lstat(name); err != nil {
		return nil, "", errors.Join(err, dir.Close())
	}
	return dir, name, nil
}

// answer answers with the class of err, which it returns.
func answer(conn net.Conn, err error) error {
	return errors.Join(err, streamwire.WriteAnswer(conn, classified(err)))
}

// finish waits for the host to close the connection, which it does when it has
// read the last that was sent.
func finish(conn net.Conn, err error) error {
	if err == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
	return err
}

// classified gives errors of files a class that a client of containerd knows.
func classified(err error) error {
	var class error
	switch {
	case err == nil || errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err):
		return err
	case errors.Is(err, fs.ErrNotExist):
		class = errdefs.ErrNotFound
	case errors.Is(err, fs.ErrExist):
		class = errdefs.ErrAlreadyExists
	case errors.Is(err, io.ErrUnexpectedEOF): // of an archive: that of the connection has no answer
		class = errdefs.ErrInvalidArgument
	case errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.EISDIR):
		class = errdefs.ErrInvalidArgument
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		class = errdefs.ErrResourceExhausted
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS):
		class = errdefs.ErrFailedPrecondition
	default:
		return err
	}
	return fmt.Errorf("%w: %w", class, err)
}

// piece fills two of the packets that the agent sends (guest/agent/vsock.go), with
// the header of its frame.
const piece = 2*31<<10 - 4

// incoming reads frames to their end.
type incoming struct {
	conn  net.Conn
	frame streamwire.Frame
	rest  []byte
	ended bool
}

func (i *incoming) Read(buf []byte) (int, error) {
	for len(i.rest) == 0 {
		if i.ended {
			return 0, io.EOF
		}
		data, err := i.frame.Receive(i.conn)
		if i.ended = errors.Is(err, io.EOF); err != nil {
			return 0, err
		}
		i.rest = data
	}
	n := copy(buf, i.rest)
	i.rest = i.rest[n:]
	return n, nil
}

// outgoing writes frames.
type outgoing struct {
	conn  net.Conn
	frame streamwire.Frame
}

func (o *outgoing) Write(data []byte) (int, error) {
	written := 0
	for written < len(data) {
		n := copy(o.frame.Room()[:piece], data[written:])
		if err := o.frame.Send(o.conn, n); err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}
