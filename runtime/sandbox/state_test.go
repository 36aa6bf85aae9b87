package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

func TestPauseAndResumeAreStatesAndEvents(t *testing.T) {
	w := running(t, newFakeAgent())
	w.startedExec(t, "e")
	if err := w.Resume(t.Context(), "c"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "running, not paused") {
		t.Errorf("resume of one that runs: %v", err)
	}
	if err := w.Pause(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	for _, exec := range []string{"", "e"} {
		if info, err := w.Info("c", exec); err != nil || info.State != Paused {
			t.Errorf("%q is %s, %v", exec, info.State, err)
		}
	}
	if err := w.Pause(t.Context(), "c"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "paused, not running") {
		t.Errorf("second pause: %v", err)
	}
	if _, err := w.Delete(t.Context(), "c", ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete of a paused one: %v", err)
	}
	if err := w.Resume(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	for _, exec := range []string{"", "e"} {
		if info, err := w.Info("c", exec); err != nil || info.State != Running {
			t.Errorf("%q is %s, %v", exec, info.State, err)
		}
	}
	if got, want := w.events.all()[4:], []string{"paused c", "resumed c"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestAPauseThatFailsChangesNothing(t *testing.T) {
	w := running(t, newFakeAgent())
	w.agent.failing("PauseContainer", errors.New("no freezer"))
	if err := w.Pause(t.Context(), "c"); err == nil || !strings.Contains(err.Error(), "no freezer") {
		t.Errorf("%v", err)
	}
	if info, err := w.Info("c", ""); err != nil || info.State != Running {
		t.Errorf("it is %s, %v", info.State, err)
	}
	w.agent.failing("PauseContainer", nil)
	if err := w.Pause(t.Context(), "c"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAPauseThatComesTooLateIsNotTold(t *testing.T) {
	w := running(t, newFakeAgent())
	held, release := w.agent.holding("PauseContainer")
	paused := make(chan error, 1)
	go func() { paused <- w.Pause(context.Background(), "c") }()
	<-held
	w.agent.of(t, "c", "").exit(0)
	w.events.await(t, "exit c/ 0")
	release()
	if err := <-paused; !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("%v", err)
	}
	if events := w.events.all(); slices.Contains(events, "paused c") {
		t.Errorf("events %q", events)
	}
}

// killed is the agent's count of kills, after one more.
func (a *fakeAgent) killed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kills++
}

func TestOutOfMemoryIsToldOnceAndBeforeTheExit(t *testing.T) {
	t.Run("the event comes after the exit", func(t *testing.T) {
		w := running(t, newFakeAgent())
		w.agent.killed()
		w.agent.of(t, "c", "").exit(statusKilled)
		w.events.await(t, "exit c/ 137")
		w.agent.ooms <- "c"
		w.agent.ooms <- "c" // the first was handled when this one is taken
		if got, want := w.events.all()[2:], []string{"oom c", "exit c/ 137"}; !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	})
	t.Run("the event comes before the exit", func(t *testing.T) {
		w := running(t, newFakeAgent())
		w.agent.killed()
		w.agent.ooms <- "c"
		w.events.await(t, "oom c")
		w.agent.of(t, "c", "").exit(statusKilled)
		w.events.await(t, "exit c/ 137")
		if got, want := w.events.all()[2:], []string{"oom c", "exit c/ 137"}; !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	})
	t.Run("an exec is killed, and later another", func(t *testing.T) {
		w := running(t, newFakeAgent())
		for _, id := range []string{"a", "b"} {
			p := w.startedExec(t, id)
			w.agent.killed()
			p.exit(statusKilled)
			w.events.await(t, "exit c/"+id+" 137")
		}
		want := []string{
			"exec-added c/a", "exec-started c/a", "oom c", "exit c/a 137",
			"exec-added c/b", "exec-started c/b", "oom c", "exit c/b 137",
		}
		if got := w.events.all()[2:]; !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	})
	t.Run("an agent that does not count", func(t *testing.T) {
		w := running(t, newFakeAgent())
		w.agent.mu.Lock()
		w.agent.counts = false
		w.agent.mu.Unlock()
		w.agent.ooms <- "c"
		w.events.await(t, "oom c")
		w.agent.of(t, "c", "").exit(statusKilled)
		w.events.await(t, "exit c/ 137")
		if got, want := w.events.all()[2:], []string{"oom c", "exit c/ 137"}; !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	})
	t.Run("a container that nobody knows", func(t *testing.T) {
		w := running(t, newFakeAgent())
		w.agent.ooms <- "../nobody"
		w.agent.ooms <- "nobody"
		if got := w.events.all()[2:]; len(got) != 0 {
			t.Errorf("events %q", got)
		}
	})
	t.Run("an agent that does not tell", func(t *testing.T) {
		agent := newFakeAgent()
		agent.failing("GetOOMEvent", errdefs.ErrNotImplemented)
		running(t, agent)
	})
}

func TestStatisticsOutliveTheProcessAndTheVM(t *testing.T) {
	w := running(t, newFakeAgent())
	current := func() uint64 {
		t.Helper()
		stats, err := w.Stats(t.Context(), "c")
		if err != nil {
			t.Fatal(err)
		}
		return stats.GetCgroupStats().GetPidsStats().GetCurrent()
	}
	if n := current(); n != 3 {
		t.Errorf("%d processes", n)
	}
	w.agent.failing("StatsContainer", errors.New("not now"))
	if _, err := w.Stats(t.Context(), "c"); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("of one that runs: %v", err)
	}
	w.agent.failing("StatsContainer", nil)
	w.agent.of(t, "c", "").exit(0)
	w.events.await(t, "exit c/ 0")
	if n := current(); n != 3 {
		t.Errorf("after the exit: %d processes", n)
	}
	w.vm.end(errors.New("gone"))
	if n := current(); n != 3 {
		t.Errorf("after the VM's end: %d processes", n)
	}
}

func TestStatisticsOfAVMThatIsGoneAreEmptyAtWorst(t *testing.T) {
	w := running(t, newFakeAgent())
	w.vm.end(errors.New("gone"))
	w.events.await(t, "exit c/ 137")
	if stats, err := w.Stats(t.Context(), "c"); err != nil || stats == nil {
		t.Errorf("%v, %v", stats, err)
	}
}

func TestLimitsReachTheGuestWhileThereIsSomethingToLimit(t *testing.T) {
	w := running(t, newFakeAgent())
	limits := &pb.LinuxResources{Memory: &pb.LinuxMemory{Limit: 1 << 20}}
	if err := w.Update(t.Context(), "c", limits); err != nil || w.agent.updated.GetMemory().GetLimit() != 1<<20 {
		t.Errorf("%v, %v", w.agent.updated, err)
	}
	w.agent.of(t, "c", "").exit(0)
	w.events.await(t, "exit c/ 0")
	if err := w.Update(t.Context(), "c", limits); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("after the exit: %v", err)
	}
}
