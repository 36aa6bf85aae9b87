package e2e

import (
	"context"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// TestTheVMGrowsWithTheMemoryLimit of its container, when it is created and when it
// is updated, and never shrinks. (Processors cannot be plugged in without KVM.)
func TestTheVMGrowsWithTheMemoryLimit(t *testing.T) {
	bed := e2etest.Newest(t)
	c := bed.Start(t, e2etest.Spec{
		Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sleep", "1000"},
		Opts: []oci.SpecOpts{oci.WithMemoryLimit(600 << 20)},
	})
	total := func() int {
		t.Helper()
		out, errs, code := c.RunExec(t, "cat", "/proc/meminfo")
		fields := strings.Fields(out)
		if code != 0 || len(fields) < 2 {
			t.Fatalf("code %d: %s", code, errs)
		}
		kib, err := strconv.Atoi(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		return kib >> 10
	}
	update := func(mib int64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
		defer cancel()
		limit := mib << 20
		if err := c.Task.Update(ctx, client.WithResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})); err != nil {
			t.Fatal(err)
		}
	}
	created := total()
	if created < 600 || created > 800 {
		t.Errorf("a VM for a limit of 600 MiB has %d", created)
	}
	update(1000)
	grown := total()
	if grown < 1000 || grown > 1200 {
		t.Errorf("a VM for a limit of 1000 MiB has %d", grown)
	}
	update(100)
	if now := total(); now != grown {
		t.Errorf("a VM that had %d MiB has %d", grown, now)
	}
	t.Logf("%d MiB, then %d", created, grown)
	c.Kill(t, syscall.SIGKILL)
	c.WaitExit(t)
	c.Delete(t)
}
