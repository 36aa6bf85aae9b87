package hostwatch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const soon = 20 * time.Second // on a busy machine

func start(t *testing.T) *Watcher {
	t.Helper()
	w, err := New(func(dir string, err error) { t.Errorf("%s: %v", dir, err) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return w
}

// watch adds a directory and returns a channel on which each call is told.
func watch(t *testing.T, w *Watcher, dir string) (*Watch, chan struct{}) {
	t.Helper()
	calls := make(chan struct{}, 100)
	one, err := w.Add(dir, func(context.Context) error {
		calls <- struct{}{}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return one, calls
}

func called(t *testing.T, calls chan struct{}) {
	t.Helper()
	select {
	case <-calls:
	case <-time.After(soon):
		t.Fatal("it is not called")
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestChangesAreTold(t *testing.T) {
	w := start(t)
	dir := t.TempDir()
	_, calls := watch(t, w, dir)
	called(t, calls) // at once
	for _, change := range []func() error{
		func() error { return os.Symlink("x", filepath.Join(dir, "..data_tmp")) },
		func() error { return os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")) },
		func() error { return os.Mkdir(filepath.Join(dir, "sub"), 0o700) },
		func() error { return os.RemoveAll(filepath.Join(dir, "..data")) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		called(t, calls)
	}
}

func TestEachOfADirectoryIsToldUntilItCloses(t *testing.T) {
	w := start(t)
	dir := t.TempDir()
	first, firstCalls := watch(t, w, dir)
	_, secondCalls := watch(t, w, dir)
	called(t, firstCalls)
	called(t, secondCalls)
	write(t, filepath.Join(dir, "a"))
	called(t, firstCalls)
	called(t, secondCalls)
	first.Close()
	write(t, filepath.Join(dir, "b"))
	called(t, secondCalls)
	if len(firstCalls) != 0 {
		t.Error("it is called after it was closed")
	}
}

// TestCloseWaitsForACallThatRuns, whose context ends.
func TestCloseWaitsForACallThatRuns(t *testing.T) {
	w := start(t)
	runs := make(chan struct{})
	done := false
	one, err := w.Add(t.TempDir(), func(ctx context.Context) error {
		close(runs)
		<-ctx.Done()
		done = true
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	<-runs
	one.Close()
	if !done {
		t.Error("the call still runs")
	}
}

func TestADirectoryThatGoesOrIsNotThereDoesNoHarm(t *testing.T) {
	w := start(t)
	dir := filepath.Join(t.TempDir(), "volume")
	if _, err := w.Add(dir, func(context.Context) error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	one, calls := watch(t, w, dir)
	called(t, calls)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	called(t, calls)
	one.Close()
}

// TestACallThatFailsIsMadeAgain after longer and longer waits, and is told of in
// the end; a change begins anew.
func TestACallThatFailsIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failure := errors.New("no guest")
		var warned []error
		w := &Watcher{warn: func(_ string, err error) { warned = append(warned, err) }, wake: make(chan struct{}, 1), byDir: map[string][]*Watch{}}
		tries := 0
		one := &Watch{watcher: w, dir: "/d", turn: make(chan struct{}, 1), due: time.Now(), changed: func(context.Context) error {
			tries++
			return failure
		}}
		one.ended, one.end = context.WithCancel(t.Context())
		defer one.end()
		w.byDir["/d"] = []*Watch{one}
		began := time.Now()
		exhaust := func() {
			for {
				wait, any := w.callDue(t.Context())
				if !any {
					return
				}
				<-time.After(wait)
			}
		}
		exhaust()
		if took := time.Since(began); tries != 1+maxRetries || took != 63*time.Second || len(warned) != 1 || !errors.Is(warned[0], failure) {
			t.Errorf("%d tries in %v, told of %v", tries, took, warned)
		}
		w.touch("/d")
		exhaust()
		if tries != 2*(1+maxRetries) || len(warned) != 2 {
			t.Errorf("%d tries after a change, told of %v", tries, warned)
		}
	})
}
