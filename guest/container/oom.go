package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/container/cgstat"
)

// oomQueue holds the containers that ran out of memory and that the host was
// not told of, each once, oldest first. Its size is bounded by the number of
// containers, whatever they do.
type oomQueue struct {
	mu      sync.Mutex
	ids     []string
	changed chan struct{} // closed, and made anew, when an id comes or another caller waits
	waiter  int           // number of the latest caller
}

func newOOMQueue() *oomQueue { return &oomQueue{changed: make(chan struct{})} }

func (q *oomQueue) add(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !slices.Contains(q.ids, id) {
		q.ids = append(q.ids, id)
		q.wake()
	}
}

// drop forgets a container, whose id may be another's next.
func (q *oomQueue) drop(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ids = slices.DeleteFunc(q.ids, func(have string) bool { return have == id })
}

func (q *oomQueue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// next waits for a container and takes it from the queue. Of several callers
// the latest gets it, and those before are sent away: a caller that has given up
// cannot be told from one that waits, and would take an event with it.
func (q *oomQueue) next(ctx context.Context) (string, error) {
	q.mu.Lock()
	q.waiter++
	me := q.waiter
	q.wake()
	for {
		switch {
		case me != q.waiter:
			q.mu.Unlock()
			return "", fmt.Errorf("another call waits for containers out of memory: %w", errdefs.ErrAborted)
		case len(q.ids) > 0:
			id := q.ids[0]
			q.ids = q.ids[1:]
			q.mu.Unlock()
			return id, nil
		}
		changed := q.changed
		q.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return "", ctx.Err()
		}
		q.mu.Lock()
	}
}

// lookForOOM puts the container into the queue if the kernel has killed a
// process of it since the last look. It is called for each change of the
// counter, and at the end of each process before anybody is told of that: the
// kernel counts before it kills (mm/oom_kill.c, __oom_kill_process), and tells
// of the change later.
func (c *Container) lookForOOM() {
	kills, err := cgstat.OOMKills(c.cgroup)
	if err != nil {
		return // the cgroup is on its way out
	}
	c.mu.Lock()
	grown := kills > c.oomKills
	c.oomKills = max(c.oomKills, kills)
	c.mu.Unlock()
	if grown {
		c.ooms.add(c.id)
	}
}

// oomWatch is a goroutine that looks at each change of memory.events.
type oomWatch struct {
	events *os.File
	ended  chan struct{}
}

// watchOOM begins to watch the cgroup, if it counts memory, until c.oom is
// closed.
func (c *Container) watchOOM() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	events := os.NewFile(uintptr(fd), "memory.events")
	path := filepath.Join(c.cgroup, "memory.events")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		_ = events.Close()
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: "inotify_add_watch", Path: path, Err: err}
	}
	c.oom = &oomWatch{events: events, ended: make(chan struct{})}
	go func() {
		defer close(c.oom.ended)
		buf := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
		for {
			// What the events say is one thing only: look.
			c.lookForOOM()
			if _, err := events.Read(buf); err != nil {
				return
			}
		}
	}()
	return nil
}

// Close ends the watch and waits for it.
func (w *oomWatch) Close() {
	if w != nil {
		_ = w.events.Close()
		<-w.ended
	}
}
