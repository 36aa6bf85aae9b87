package turnstile

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// holdVar has a process of this test take a place of a directory, say so, and keep it.
const holdVar = "TURNSTILE_TEST_HOLD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holdVar); dir != "" {
		if _, err := (Turnstile{Dir: dir, Places: 1}).Enter(context.Background()); err != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString("taken\n")
		select {}
	}
	goleak.VerifyTestMain(m)
}

func enter(t *testing.T, s Turnstile) *Place {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := s.Enter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func leave(t *testing.T, p *Place) {
	t.Helper()
	if err := p.Leave(); err != nil {
		t.Error(err)
	}
}

func TestNoMoreThanThePlacesAreThrough(t *testing.T) {
	s := Turnstile{Dir: filepath.Join(t.TempDir(), "a", "b"), Places: 3}
	var inside, most atomic.Int32
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			p := enter(t, s)
			n := inside.Add(1)
			for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
			}
			inside.Add(-1)
			leave(t, p)
		})
	}
	all.Wait()
	if n := most.Load(); n < 1 || n > 3 {
		t.Errorf("%d were through at the same time", n)
	}
}

func TestAllPlacesCanBeTaken(t *testing.T) {
	s := Turnstile{Dir: t.TempDir(), Places: 3}
	places := []*Place{enter(t, s), enter(t, s), enter(t, s)}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := s.Enter(ctx); !errors.Is(err, ErrFull) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > lookAgain/2 {
		t.Errorf("the end of the context was noticed after %v", took)
	}
	for _, p := range places {
		leave(t, p)
	}
}

// Whoever waits is woken, and does not just look again.
func TestAFreePlaceIsTakenAtOnce(t *testing.T) {
	s := Turnstile{Dir: t.TempDir(), Places: 1}
	var longest time.Duration
	for range 5 {
		first := enter(t, s)
		came := make(chan time.Time)
		waiting := make(chan struct{})
		go func() {
			close(waiting)
			p := enter(t, s)
			came <- time.Now()
			leave(t, p)
		}()
		<-waiting
		timer := time.NewTimer(30 * time.Millisecond) // it waits by now
		<-timer.C
		left := time.Now()
		leave(t, first)
		longest = max(longest, (<-came).Sub(left))
	}
	if longest > lookAgain/2 {
		t.Errorf("a free place was taken after %v", longest)
	}
}

func TestAPlaceIsFreeWhenItsProcessDies(t *testing.T) {
	s := Turnstile{Dir: t.TempDir(), Places: 1}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holdVar+"="+s.Dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Enter(ctx); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	leave(t, enter(t, s))
	_ = cmd.Wait()
}

func TestWithoutPlacesAllComeThrough(t *testing.T) {
	s := Turnstile{Dir: filepath.Join(t.TempDir(), "none")}
	leave(t, enter(t, s))
	if _, err := os.Stat(s.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is made: %v", s.Dir, err)
	}
}

func TestALinkIsNoPlace(t *testing.T) {
	s := Turnstile{Dir: t.TempDir(), Places: 1}
	if err := os.Symlink("/etc/passwd", filepath.Join(s.Dir, "0")); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Enter(t.Context()); err == nil {
		leave(t, p)
		t.Error("a link was opened")
	}
}
