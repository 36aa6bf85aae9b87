package rootfs_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
)

// TestWhatTheRuntimeOrTheGuestCannotDoIsRefused has lists that are understood,
// and the switch that each needs. Without it they are refused before a file is
// looked at; with it the planner goes on to the files, which are not there.
func TestWhatTheRuntimeOrTheGuestCannotDoIsRefused(t *testing.T) {
	verity := option(1, "X-containerd.dmverity=/s/2/layer.erofs.dmverity")
	for name, c := range map[string]struct {
		mounts []rootfs.Mount
		class  rootfs.Class
		names  string
		on     func(*rootfs.Options)
	}{
		"dm-verity": {ofList(verity), rootfs.ClassVerity, "dmverity_mode", func(o *rootfs.Options) { o.Partitions = true }},
	} {
		t.Run(name, func(t *testing.T) {
			var o rootfs.Options
			_, err := rootfs.NewPlanner(o).Plan(deadline(t), c.mounts)
			if err == nil {
				t.Fatal("taken")
			}
			if got := classOf(t, err); got != c.class || !strings.Contains(err.Error(), c.names) {
				t.Errorf("class %s, want %s, with %q in: %v", got, c.class, c.names, err)
			}
			c.on(&o)
			if _, err := rootfs.NewPlanner(o).Plan(deadline(t), c.mounts); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("switched on: %v, want %v", err, os.ErrNotExist)
			}
		})
	}
}

func TestAProtectedLayerIsNeverMerged(t *testing.T) {
	mounts := ofList(option(1, "X-containerd.dmverity=/s/2/layer.erofs.dmverity"))
	_, err := rootfs.NewPlanner(rootfs.Options{Partitions: true, Layers: rootfs.LayersMerge}).Plan(deadline(t), mounts)
	if err == nil || classOf(t, err) != rootfs.ClassVerity || !strings.Contains(err.Error(), `layers = "auto"`) {
		t.Errorf("%v, want a refusal that names the setting", err)
	}
}
