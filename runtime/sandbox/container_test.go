package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// newTestContainer returns the process of a container that is being created.
func newTestContainer() (*process, *[]string, func(Exit)) {
	var events []string
	c := newContainer("c", "/bundle", stdio.Paths{}, func() {})
	return c.init, &events, func(Exit) { events = append(events, "exit") }
}

func created(t *testing.T, p *process) {
	t.Helper()
	if err := p.c.created(t.Context(), func() {}); err != nil {
		t.Fatal(err)
	}
}

func started(events *[]string) func() {
	return func() { *events = append(*events, "start") }
}

func TestExitIsReportedOnce(t *testing.T) {
	c, events, exited := newTestContainer()
	created(t, c)
	c.ended(Exit{Status: 3, At: time.Unix(1, 0)}, exited)
	c.ended(Exit{Status: statusKilled}, exited) // the VM dies afterwards
	if !slices.Equal(*events, []string{"exit"}) {
		t.Errorf("events %v", *events)
	}
	if state, exit := c.current(); state != Stopped || exit.Status != 3 {
		t.Errorf("%s with status %d", state, exit.Status)
	}
	<-c.exited
}

func TestExitComesAfterStart(t *testing.T) {
	c, events, exited := newTestContainer()
	created(t, c)
	if err := c.beginStart(); err != nil {
		t.Fatal(err)
	}
	c.ended(Exit{Status: 0}, exited) // before StartContainer has returned
	if len(*events) != 0 {
		t.Fatalf("events %v before start", *events)
	}
	select {
	case <-c.exited:
		t.Fatal("a waiter saw the exit before start")
	default:
	}
	c.endStart(true, started(events), exited)
	if !slices.Equal(*events, []string{"start", "exit"}) {
		t.Errorf("events %v", *events)
	}
	<-c.exited
}

func TestFailedStartStillEnds(t *testing.T) {
	c, events, exited := newTestContainer()
	created(t, c)
	if err := c.beginStart(); err != nil {
		t.Fatal(err)
	}
	c.endStart(false, started(events), exited)
	if state, _ := c.current(); state != Created {
		t.Errorf("%s after a failed start", state)
	}
	c.ended(Exit{Status: 1}, exited)
	if !slices.Equal(*events, []string{"exit"}) {
		t.Errorf("events %v", *events)
	}
}

func TestIllegalTransitionsNameBothStates(t *testing.T) {
	c, _, exited := newTestContainer()
	check := func(what string, err error, words ...string) {
		t.Helper()
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", what, err)
			return
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q lacks %q", what, err, w)
			}
		}
	}
	check("start while creating", c.beginStart(), "creating", "created")
	check("delete while creating", c.beginDelete(), "creating", "stopped")
	created(t, c)
	check("delete when created", c.beginDelete(), "created", "stopped")
	if err := c.beginStart(); err != nil {
		t.Fatal(err)
	}
	check("second start", c.beginStart(), "created")
	c.endStart(true, func() {}, exited)
	check("start when running", c.beginStart(), "running", "created")
	c.ended(Exit{}, exited)
	check("start when stopped", c.beginStart(), "stopped", "created")
	if err := c.beginDelete(); err != nil {
		t.Fatal(err)
	}
	if err := c.beginDelete(); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v", err)
	}
}

// TestAContainerIsCreatedOrGivenUp, and never both: a kill that is answered is not
// lost at the last moment.
func TestAContainerIsCreatedOrGivenUp(t *testing.T) {
	for _, first := range []string{"created", "given up"} {
		t.Run(first, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			c := newContainer("c", "", stdio.Paths{}, func() { cancel(errAbandoned) })
			told := false
			create := func() error { return c.created(ctx, func() { told = true }) }
			if first == "created" {
				if err := create(); err != nil || !told {
					t.Errorf("%v, told %t", err, told)
				}
				if c.giveUp() || ctx.Err() != nil {
					t.Error("it can be given up")
				}
				return
			}
			if !c.giveUp() {
				t.Error("it cannot be given up")
			}
			if err := create(); !errors.Is(err, errAbandoned) || told {
				t.Errorf("%v, told %t", err, told)
			}
		})
	}
}
