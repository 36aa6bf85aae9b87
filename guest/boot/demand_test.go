package boot

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/guest/layout"
)

func TestStageOnDemandIsLoadedOnceForAll(t *testing.T) {
	var loads atomic.Int32
	begun, finish := make(chan struct{}), make(chan struct{})
	d := newDemand(func(stage string) error {
		if stage == layout.StageVerity {
			loads.Add(1)
			close(begun)
			<-finish
		}
		return nil
	})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := d.Load(t.Context(), layout.StageVerity); err != nil {
				t.Error(err)
			}
		})
	}
	<-begun
	// Another stage is not kept by it, and a wait ends with its context.
	if err := d.Load(t.Context(), layout.StageSCSI); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := d.Load(ctx, layout.StageVerity); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stage verity") {
		t.Errorf("%v", err)
	}
	close(finish)
	all.Wait()
	if err := d.Load(t.Context(), layout.StageVerity); err != nil || loads.Load() != 1 {
		t.Errorf("%v, loaded %d times", err, loads.Load())
	}
}

func TestStageThatFailsNamesItsModulesAndIsTriedAgain(t *testing.T) {
	failure := errors.New("load module /modules/dm-mod.ko: no memory")
	fails := true
	d := newDemand(func(string) error {
		if fails {
			return failure
		}
		return nil
	})
	if err := d.Load(t.Context(), layout.StageVerity); !errors.Is(err, failure) || !strings.Contains(err.Error(), "dm-mod.ko") {
		t.Errorf("%v", err)
	}
	fails = false
	if err := d.Load(t.Context(), layout.StageVerity); err != nil {
		t.Errorf("second attempt: %v", err)
	}
}

func TestStageOnDemandHasItsFilesFromTheList(t *testing.T) {
	d := NewDemand(t.TempDir(), []Module{{layout.StageSCSI, "sd_mod.ko"}, {layout.StageVerity, "dm-mod.ko"}})
	if err := d.Load(t.Context(), layout.StageSCSI); err == nil || !strings.Contains(err.Error(), "sd_mod.ko") || strings.Contains(err.Error(), "dm-mod.ko") {
		t.Errorf("%v", err)
	}
}
