package sandbox

import (
	"context"
	"fmt"
	"path"
	"time"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
	"github.com/erofsvm/erofsvm/runtime/hostfs"
	"github.com/erofsvm/erofsvm/runtime/hostshare"
)

// hostFiles are the host's files that a container has mounts of, copied to the
// guest or shown to it.
type hostFiles interface {
	// give lets the guest have them, and returns the storages that the agent needs
	// for that. The VM is there; the container is not yet.
	give(ctx context.Context, m *machine, c *container) ([]*pb.Storage, error)
	// close lets go of what was opened to look at them.
	close()
}

// openHostFiles looks at all of them, before anything is made for the container.
// The caller closes them.
func openHostFiles(list []guestspec.Copy, how configs.Mounts) (hostFiles, error) {
	if how.Bind == configs.BindVirtioFS {
		return openShares(list)
	}
	return scanCopies(list, how)
}

// guestShares is where a container's bind mounts come from, empty if those are
// copies. The agent knows the place by the container's id.
func guestShares(req *CreateRequest) string {
	if req.Config.Mounts.Bind != configs.BindVirtioFS {
		return ""
	}
	return path.Join(guestRoot, req.ID, "share")
}

// virtiofsdPath is the daemon's path, empty if none is wanted.
func virtiofsdPath(how configs.Mounts) (string, error) {
	if how.Bind != configs.BindVirtioFS {
		return "", nil
	}
	return lookUp("mounts.virtiofsd", how.Virtiofsd)
}

// shares are shown to the guest as one filesystem.
type shares []shared

type shared struct {
	guestspec.Copy
	tree *hostshare.Tree
}

func openShares(list []guestspec.Copy) (shares, error) {
	var found shares
	for _, c := range list {
		tree, err := hostshare.Open(c.Source, c.Recursive)
		if err != nil {
			found.close()
			return nil, fmt.Errorf("mount %s, which is the host's %s: %w", c.Destination, c.Source, err)
		}
		found = append(found, shared{c, tree})
	}
	return found, nil
}

func (all shares) close() {
	for _, s := range all {
		s.tree.Close()
	}
}

// give plugs in a device for the container's files, to be found by its tag.
func (all shares) give(ctx context.Context, m *machine, c *container) ([]*pb.Storage, error) {
	if len(all) == 0 {
		return nil, nil
	}
	begun := time.Now()
	defer m.trace.phase("share", begun)
	id := fmt.Sprintf("c%d-share", c.serial)
	want := hypervisor.Share{ID: id, Hide: hostfs.Types()}
	for _, s := range all {
		want.Entries = append(want.Entries, hypervisor.ShareEntry{
			Name: path.Base(s.Guest), Tree: s.tree.Mount(), ReadOnly: s.ReadOnly, Receive: s.Receive,
		})
	}
	c.disks = append(c.disks, attached{id: id}) // an error may leave it half there
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Plug.Std())
	defer cancel()
	if err := m.vm.AttachShare(ctx, want); err != nil {
		return nil, err
	}
	return []*pb.Storage{{
		Driver: "virtio-fs", Source: id, Fstype: "virtiofs", MountPoint: path.Dir(all[0].Guest),
	}}, nil
}
