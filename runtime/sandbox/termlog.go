package sandbox

import (
	"context"
	"fmt"
	"path"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
	"github.com/erofsvm/erofsvm/runtime/termlog"
)

// message is a file of the host to which the content of its copy goes when the
// container ends.
type message struct {
	guestspec.Copy
	file *termlog.File
}

// openMessages opens those of a container's mounts that are for its last words. One
// that cannot be written is a copy like others.
func (m *machine) openMessages(c *container, mounts []guestspec.Copy) {
	for _, mount := range mounts {
		// What is no copy is the host's own.
		if path.Dir(mount.Guest) != guestCopies(c.id) || !termlog.Is(mount.Destination, mount.Source, mount.ReadOnly) {
			continue
		}
		if !m.copies {
			m.log.WithField("container", c.id).Warnf("mount %s: the agent in the guest cannot give it back to the host", mount.Destination)
			return
		}
		file, err := termlog.Open(mount.Source)
		if err != nil {
			m.log.WithField("container", c.id).WithError(err).Warnf("mount %s does not come back to the host", mount.Destination)
			continue
		}
		c.messages = append(c.messages, message{mount, file})
	}
}

// bringBack writes the last words of a container, whose process has ended, into the
// host's files. It has one deadline for all of them, and what fails is for the log:
// a container ends all the same.
func (m *machine) bringBack(c *container) {
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.Deadlines.Call.Std())
	defer cancel()
	for _, one := range c.messages {
		if err := one.bringBack(ctx, m, c.id); err != nil {
			m.log.WithField("container", c.id).WithError(err).Warnf("mount %s does not come back to the host's %s", one.Destination, one.Source)
		}
	}
}

func (one message) bringBack(ctx context.Context, m *machine, id string) error {
	conn, err := m.dialFiles(ctx)
	if err != nil {
		return err
	}
	content, err := agentclient.Fetch(ctx, conn, streamwire.Request{Container: id, Path: path.Base(one.Guest)})
	if err != nil {
		return err
	}
	if err := one.file.Write(content); err != nil {
		return fmt.Errorf("write the host's file: %w", err)
	}
	return nil
}

func (c *container) closeMessages() {
	for _, one := range c.messages {
		one.file.Close()
	}
}
