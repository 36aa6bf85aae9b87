package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func TestContainerOutOfMemoryIsNamedOnce(t *testing.T) {
	q := newOOMQueue()
	for _, id := range []string{"a", "b", "a", "c"} {
		q.add(id)
	}
	q.drop("b")
	for _, want := range []string{"a", "c"} {
		if id, err := q.next(t.Context()); id != want || err != nil {
			t.Errorf("%q, %v, want %s", id, err, want)
		}
	}
	q.add("a") // it happened again
	if id, err := q.next(t.Context()); id != "a" || err != nil {
		t.Errorf("%q, %v", id, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if id, err := q.next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%q, %v", id, err)
	}
}

func TestLatestCallerGetsTheEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newOOMQueue()
		got := make([]string, 3)
		for i := range got {
			go func() {
				id, err := q.next(t.Context())
				if errors.Is(err, errdefs.ErrAborted) {
					id = "sent away"
				}
				got[i] = id
			}()
			synctest.Wait() // it waits, or has gone
		}
		q.add("c")
		synctest.Wait()
		if want := "[sent away sent away c]"; fmt.Sprint(got) != want {
			t.Errorf("%q, want %s", got, want)
		}
	})
}

// events writes the counter as the kernel shows it.
func events(t *testing.T, dir string, kills int) {
	t.Helper()
	text := fmt.Sprintf("low 0\nhigh 0\nmax 9\noom 9\noom_kill %d\noom_group_kill 0\n", kills)
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestGrowthOfTheCounterIsAnEvent(t *testing.T) {
	c := newContainer("c", newOOMQueue())
	c.cgroup = t.TempDir()
	next := func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		id, err := c.ooms.next(ctx)
		if err != nil {
			t.Error(err)
		}
		return id
	}
	events(t, c.cgroup, 0)
	if err := c.watchOOM(); err != nil {
		t.Fatal(err)
	}
	defer c.oom.Close()
	for i := range 3 {
		events(t, c.cgroup, 2*(i+1)) // seen by the watch
		if id := next(); id != "c" {
			t.Errorf("%q", id)
		}
	}
	c.oom.Close()
	events(t, c.cgroup, 7)
	c.lookForOOM() // as the end of a process has it
	c.lookForOOM()
	if id := next(); id != "c" || len(c.ooms.ids) != 0 {
		t.Errorf("%q, and then %q", id, c.ooms.ids)
	}
}

func TestCgroupWithoutMemoryIsNotWatched(t *testing.T) {
	c := newContainer("c", newOOMQueue())
	c.cgroup = t.TempDir()
	if err := c.watchOOM(); err != nil || c.oom != nil {
		t.Errorf("%v, %v", c.oom, err)
	}
	c.lookForOOM()
	c.oom.Close()
	if len(c.ooms.ids) != 0 {
		t.Errorf("%q", c.ooms.ids)
	}
}
