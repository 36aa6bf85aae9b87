package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/runtime/turnstile"
)

// occupied has all starts but free of them taken by others.
func occupied(t *testing.T, c configs.Config, free int) []*turnstile.Place {
	t.Helper()
	s := startsOf(c)
	var taken []*turnstile.Place
	for range s.Places - free {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		p, err := s.Enter(ctx)
		cancel()
		if err != nil {
			t.Fatalf("only %d of %d places are free: %v", len(taken)+free, s.Places, err)
		}
		taken = append(taken, p)
	}
	return taken
}

func vacate(t *testing.T, places []*turnstile.Place) {
	t.Helper()
	for _, p := range places {
		if err := p.Leave(); err != nil {
			t.Error(err)
		}
	}
}

func TestAStartWaitsForThoseOfOthers(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	others := occupied(t, w.config, 0)
	result := make(chan error)
	go func() {
		_, err := w.Create(t.Context(), w.request(t, "c", ""))
		result <- err
	}()
	timer := time.NewTimer(50 * time.Millisecond)
	select {
	case err := <-result:
		t.Fatalf("it did not wait: %v", err)
	case <-timer.C:
	}
	vacate(t, others)
	if err := <-result; err != nil {
		t.Error(err)
	}
	vacate(t, occupied(t, w.config, 0)) // it is over
}

// A turn is over with the start, whatever came of it, and a pod's as soon as it can take
// containers.
func TestATurnEnds(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, w *world){
		"with a container": func(t *testing.T, w *world) {
			if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
				t.Error(err)
			}
		},
		"with a VM that does not start": func(t *testing.T, w *world) {
			w.start = func(context.Context, qemu.Spec) (bootedVM, error) { return nil, errors.New("no such machine") }
			if _, err := w.Create(t.Context(), w.request(t, "c", "")); err == nil {
				t.Error("it starts")
			}
		},
		"with a container that cannot be made": func(t *testing.T, w *world) {
			w.agent.fail = map[string]error{"CreateContainer": errors.New("no")}
			if _, err := w.Create(t.Context(), w.request(t, "c", "")); err == nil {
				t.Error("it starts")
			}
		},
		"with a pod": func(t *testing.T, w *world) {
			if err := w.CreatePod(&PodRequest{ID: "pod", Bundle: w.request(t, "pod", "").Bundle, Config: w.config}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.StartPod(t.Context(), "pod"); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newFakeAgent())
			others := occupied(t, w.config, 1)
			start(t, w)
			vacate(t, others)
			vacate(t, occupied(t, w.config, 0))
		})
	}
}

func TestWithoutAPlaceAStartGoesOn(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	dir := startsOf(w.config).Dir
	if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o700), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
		t.Error(err)
	}
}
