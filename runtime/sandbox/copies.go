package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
	"github.com/erofsvm/erofsvm/runtime/hostcopy"
)

// guestCopies is where copies of the host's files go in the guest: below what
// the protocol has for files that host and guest share. The agent removes them
// with the container.
func guestCopies(id string) string { return guestRoot + "/shared/containers/" + id }

// copies are the host's files that a container has mounts from.
type copies []copied

type copied struct {
	guestspec.Copy
	tree *hostcopy.Tree
}

// scanCopies looks at all of them, before anything is made for the container.
// The caller closes them.
func scanCopies(list []guestspec.Copy, limits configs.Mounts) (_ copies, err error) {
	var found copies
	defer func() {
		if err != nil {
			found.close()
		}
	}()
	left := budget(limits)
	for _, c := range list {
		tree, err := scanCopy(c, left, limits)
		if err != nil {
			return nil, err
		}
		found = append(found, copied{c, tree})
	}
	return found, nil
}

// budget is what a container may have copied.
func budget(limits configs.Mounts) *hostcopy.Budget {
	return &hostcopy.Budget{Bytes: int64(limits.CopyMiB) << 20, Entries: limits.CopyFiles}
}

// scanCopy looks at one of them, and names the key that bounds it.
func scanCopy(c guestspec.Copy, left *hostcopy.Budget, limits configs.Mounts) (*hostcopy.Tree, error) {
	tree, err := hostcopy.Scan(c.Source, left)
	switch {
	case errors.Is(err, hostcopy.ErrBytes):
		err = fmt.Errorf("%w: all bind mounts of a container together may have %d MiB, as mounts.copy_mib of the configuration says; mounts.bind = \"virtiofs\" needs no copies", err, limits.CopyMiB)
	case errors.Is(err, hostcopy.ErrEntries):
		err = fmt.Errorf("%w: all bind mounts of a container together may have %d, as mounts.copy_files of the configuration says", err, limits.CopyFiles)
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s, which is a copy of the host's %s: %w", c.Destination, c.Source, err)
	}
	return tree, nil
}

func (all copies) close() {
	for _, c := range all {
		c.tree.Close()
	}
}

// give gives the guest its copies. Those that follow the host are the container's
// from then on.
func (all copies) give(ctx context.Context, m *machine, c *container) ([]*pb.Storage, error) {
	if len(all) == 0 {
		return nil, nil
	}
	begun := time.Now()
	defer m.trace.phase("copy", begun)
	for _, one := range all {
		if one.tree.Published() {
			p := &published{Copy: one.Copy, m: m, container: c.id, limits: m.cfg.Mounts, has: map[string]hostcopy.Entry{}}
			if err := p.send(ctx); err != nil {
				return nil, err
			}
			c.published = append(c.published, p)
			continue
		}
		for _, e := range one.tree.Entries {
			if err := one.sendEntry(ctx, m.agent, e); err != nil {
				return nil, fmt.Errorf("mount %s: %w", one.Destination, err)
			}
		}
		if !one.ReadOnly {
			m.log.Infof("mount %s is a copy of the host's %s: what is written to it stays in the virtual machine", one.Destination, one.Source)
		}
	}
	return nil, nil
}

// copyDirMode is the mode of directories above the copies.
const copyDirMode = 0o755

func (c copied) sendEntry(ctx context.Context, agent *agentclient.Client, e hostcopy.Entry) error {
	f := agentclient.File{
		Path: path.Join(c.Guest, e.Name), Size: e.Size, Mode: e.Mode, DirMode: copyDirMode, UID: int32(e.UID), GID: int32(e.GID),
	}
	switch e.Type() {
	case unix.S_IFDIR:
		return agent.CopyDir(ctx, f)
	case unix.S_IFLNK:
		return agent.CopyLink(ctx, f, e.Target)
	}
	content, err := c.tree.Read(e)
	if err != nil {
		return err
	}
	defer content.Close()
	return agent.CopyFile(ctx, f, content)
}
