package container

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/guest/storage"
)

var states = []State{Creating, Created, Starting, Running, Pausing, Paused, Resuming, Stopped, Removing}

func TestIllegalTransitionNamesBothStates(t *testing.T) {
	legal := 0
	for _, from := range states {
		for _, next := range states {
			c := &Container{id: "c", state: from}
			err := c.to(next)
			if err == nil {
				legal++
				if c.State() != next {
					t.Errorf("%s to %s: it is %s", from, next, c.State())
				}
				continue
			}
			if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), string(from)) || !strings.Contains(err.Error(), string(next)) {
				t.Errorf("%s to %s: %v", from, next, err)
			}
			if c.State() != from {
				t.Errorf("%s to %s was refused and moved it to %s", from, next, c.State())
			}
		}
	}
	if legal != 18 {
		t.Errorf("%d legal transitions, the diagram has 18", legal)
	}
}

func TestStoppedStaysStopped(t *testing.T) {
	c := &Container{id: "c", state: Starting}
	c.stopped() // the process ended before the call that starts it returned
	c.toFrom(Starting, Running)
	if c.State() != Stopped {
		t.Errorf("it is %s", c.State())
	}
}

func TestUnknownContainersAreNotFound(t *testing.T) {
	m := NewManager(Dirs{Base: t.TempDir(), State: t.TempDir()}, storage.System{})
	_, waitErr := m.Wait(t.Context(), "c", "")
	_, readErr := m.ReadStdout(t.Context(), "c", "", make([]byte, 1))
	for name, err := range map[string]error{
		"start": m.Start("c"), "signal": m.Signal("c", "", 9), "remove": m.Remove(t.Context(), "c"), "wait": waitErr, "read": readErr,
		"exec": m.Exec("c", "e", nil), "resize": m.Resize("c", "", 1, 1), "stdin": m.CloseStdin("c", ""),
	} {
		if !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIDIsTakenOnce(t *testing.T) {
	m := NewManager(Dirs{Base: t.TempDir(), State: t.TempDir()}, storage.System{})
	if _, err := m.reserve("c"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.reserve("c"); !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(err.Error(), string(Creating)) {
		t.Errorf("%v", err)
	}
	if err := m.Start("c"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("start while it is being created: %v", err)
	}
	if err := m.Signal("c", "", 9); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("signal while it is being created: %v", err)
	}
	m.forget("c")
	if _, err := m.reserve("c"); err != nil || m.Len() != 1 {
		t.Errorf("%v, %d", err, m.Len())
	}
}

// TestFinishedExecsAreForgotten has a probe run a thousand times.
func TestFinishedExecsAreForgotten(t *testing.T) {
	c := newContainer("c", newOOMQueue())
	c.state = Running
	for i := range 1000 {
		id := "probe" + strings.Repeat("x", i%50) + string(rune('a'+i%26)) + strings.Repeat("y", i/50)
		if err := c.reserveExec(id); err != nil {
			t.Fatal(err)
		}
		p := &process{exited: make(chan struct{})}
		p.told.Store(i != 0) // the first one is never asked for
		close(p.exited)
		c.execStarted(id, p, true)
		c.execEnded(id)
	}
	if n := len(c.execs); n > keepFinished+2 {
		t.Errorf("%d execs are kept", n)
	}
	if _, err := c.process("probea"); err != nil {
		t.Errorf("the exec whose status nobody has: %v", err)
	}
}
