// Package hostshare takes hold of a file or a directory of the host that a guest
// is to be shown as it is.
//
// Open looks the path up, once: whatever its name leads to afterwards, the Tree
// is what was found. A Tree owns a mount that is attached nowhere, until Close;
// one goroutine at a time may use it. The package changes nothing on the host,
// starts no goroutine and knows nothing of guests.
package hostshare

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/runtime/hostfs"
)

// Tree is a file, or a directory with all that is in it.
type Tree struct {
	mount *os.File
}

// Open finds source, an absolute path in which links are followed. With recursive
// what is mounted below it belongs to the tree, without, what the mounts hide.
//
// What is neither a file nor a directory, or is of the host's kernel, is refused
// with an error of class errdefs.ErrNotImplemented. The caller closes the Tree.
func Open(source string, recursive bool) (*Tree, error) {
	found, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: source, Err: err}
	}
	defer unix.Close(found)
	if err := check(found, source); err != nil {
		return nil, err
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	mount, err := unix.OpenTree(found, "", flags)
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: its mount is unbindable, or is not in the mount namespace of the shim", err)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: source, Err: err}
	}
	return &Tree{mount: os.NewFile(uintptr(mount), source)}, nil
}

func check(fd int, source string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: source, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		return hostfs.Refuse(fd, source)
	case unix.S_IFSOCK:
		return fmt.Errorf("%s is a socket of the host, to which only a mount of type uds leads: %w", source, errdefs.ErrNotImplemented)
	}
	return fmt.Errorf("%s is a fifo or a device of the host, which the guest cannot have: %w", source, errdefs.ErrNotImplemented)
}

// Mount is the tree as a mount that is attached nowhere (open_tree(2)). It is the
// Tree's to close; whoever attaches it uses it up.
func (t *Tree) Mount() *os.File { return t.mount }

// Close lets go of the tree, unless its mount is attached by then. It may be
// called more than once.
func (t *Tree) Close() { _ = t.mount.Close() }
