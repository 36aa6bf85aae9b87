package sandbox

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/runtime/guestspec"
	"github.com/erofsvm/erofsvm/runtime/hostcopy"
	"github.com/erofsvm/erofsvm/runtime/hostwatch"
)

// published is a directory that a kubelet keeps up to date (hostcopy.Published), of
// which a container has a copy that is kept up to date too. One goroutine at a time
// has it: that which creates the container, then the machine's watcher.
type published struct {
	guestspec.Copy
	m         *machine
	container string
	limits    configs.Mounts
	has       map[string]hostcopy.Entry // what the guest has, by name
	watch     *hostwatch.Watch          // nil until the container is there
}

// firstTries is how often the content is sent to a container that is being created,
// while the kubelet replaces it.
const firstTries = 5

// send gives the guest the content for the first time.
func (p *published) send(ctx context.Context) error {
	for try := 1; ; try++ {
		err := p.refresh(ctx)
		if !errdefs.IsUnavailable(err) || try == firstTries {
			return err
		}
	}
}

// refresh gives the guest what is published now and takes away what is not any
// more, in an order in which the container sees the old content or the new. After
// an error a further call goes on.
func (p *published) refresh(ctx context.Context) error {
	tree, err := scanCopy(p.Copy, budget(p.limits), p.limits)
	if err != nil {
		return err
	}
	defer tree.Close()
	if !tree.Published() {
		return fmt.Errorf("mount %s: %s has no ..data any more, and the container keeps what it had: %w", p.Destination, p.Source, errdefs.ErrUnavailable)
	}
	entries := slices.Clone(tree.Entries)
	slices.SortStableFunc(entries, func(a, b hostcopy.Entry) int { return tree.PublishOrder(a) - tree.PublishOrder(b) })
	now := map[string]bool{}
	c := copied{p.Copy, tree}
	for _, e := range entries {
		now[e.Name] = true
		if p.has[e.Name] == e {
			continue
		}
		if err := p.replace(ctx, c, e); err != nil {
			return fmt.Errorf("mount %s: %w", p.Destination, err)
		}
	}
	return p.clear(ctx, now)
}

// replace sends an entry. What was there of another kind has to go first: the guest
// puts a file or a link in the place of either, and nothing in that of a directory.
func (p *published) replace(ctx context.Context, c copied, e hostcopy.Entry) error {
	had, there := p.has[e.Name]
	if there && had.Type() != e.Type() && (had.Type() == unix.S_IFDIR || e.Type() == unix.S_IFDIR) {
		if err := p.remove(ctx, e.Name); err != nil {
			return err
		}
	}
	if err := c.sendEntry(ctx, p.m.agent, e); err != nil {
		return err
	}
	p.has[e.Name] = e
	return nil
}

// clear takes away what is not published any more: the names that lead nowhere, then
// the old content.
func (p *published) clear(ctx context.Context, now map[string]bool) error {
	var gone []string
	for name := range p.has {
		if !now[name] {
			gone = append(gone, name)
		}
	}
	// Names of content begin with two dots, and what is below a name follows it.
	slices.SortFunc(gone, func(a, b string) int {
		if a, b := strings.HasPrefix(a, ".."), strings.HasPrefix(b, ".."); a != b {
			if a {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
	for _, name := range gone {
		if _, left := p.has[name]; !left {
			continue // it went with what it was in
		}
		if err := p.remove(ctx, name); err != nil {
			return fmt.Errorf("mount %s: %w", p.Destination, err)
		}
	}
	return nil
}

// remove removes a name from the guest, with all that is below it.
func (p *published) remove(ctx context.Context, name string) error {
	if p.m.copies {
		conn, err := p.m.dialFiles(ctx)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, p.m.cfg.Deadlines.Call.Std())
		defer cancel()
		err = agentclient.Remove(ctx, conn, streamwire.Request{Container: p.container, Path: path.Join(path.Base(p.Guest), name)})
		if err != nil {
			return err
		}
	}
	for other := range p.has {
		if other == name || strings.HasPrefix(other, name+"/") {
			delete(p.has, other)
		}
	}
	return nil
}

// follow keeps the published directories of a container up to date until it is taken
// apart. Where that cannot be had the container runs with what it got.
func (m *machine) follow(c *container) {
	if len(c.published) == 0 {
		return
	}
	watcher, err := m.watch.get(m)
	for _, p := range c.published {
		if err == nil {
			p.watch, err = watcher.Add(p.Source, p.refresh)
		}
		if err != nil {
			m.log.WithField("container", c.id).WithError(err).Warnf("mount %s does not follow the host's %s", p.Destination, p.Source)
		}
	}
}

// unfollow returns when nothing is sent to the container any more.
func (c *container) unfollow() {
	for _, p := range c.published {
		if p.watch != nil {
			p.watch.Close()
			p.watch = nil
		}
	}
}

// watcher is that of a machine, made when it is first needed.
type watcher struct {
	mu   sync.Mutex
	made *hostwatch.Watcher
}

func (w *watcher) get(m *machine) (*hostwatch.Watcher, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.made != nil {
		return w.made, nil
	}
	made, err := hostwatch.New(func(dir string, err error) {
		m.log.WithError(err).Warnf("containers do not see what is new in the host's %s", dir)
	})
	if err != nil {
		return nil, err
	}
	if err := m.spawn(func() { made.Run(m.ctx) }); err != nil {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		made.Run(ended) // which gives back what it has
		return nil, err
	}
	w.made = made
	return made, nil
}
