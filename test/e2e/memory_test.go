package e2e

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// Budgets of resident memory in a pod that idles, in bytes. Every pod of a host pays
// them. Of the agent's, 10 MB are its program, which lies in the guest's memory as the
// initramfs does (docs/performance.md).
const (
	maxShimRSS  = 15_000_000
	maxAgentRSS = 13_500_000
)

// TestAnIdlePodIsSmall: a shim whose pod runs has given back what the start needed, and
// the agent takes no more of the guest than it may.
func TestAnIdlePodIsSmall(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	c := bed.Start(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", "cat /proc/1/comm /proc/1/status && echo whole && exec sleep 1000"},
		Opts: []oci.SpecOpts{oci.WithHostNamespace(specs.PIDNamespace)}}) // that of the guest, in which PID 1 is the agent
	c.Stdout.WaitFor(t, "whole")
	comm, status, _ := strings.Cut(c.Stdout.String(), "\n")
	if agent := rss(t, status); comm != "init" || agent > maxAgentRSS {
		t.Errorf("%s has %.1f MB resident, want the agent with %.1f at most", comm, float64(agent)/1e6, maxAgentRSS/1e6)
	} else {
		t.Logf("agent: %.1f MB", float64(agent)/1e6)
	}

	shims, err := bed.Shims()
	if err != nil || len(shims) != 1 {
		t.Fatalf("shims %v, %v", shims, err)
	}
	var last int64
	for tick, deadline := time.NewTicker(200*time.Millisecond), time.After(e2etest.Step); ; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the shim has %.1f MB resident, want %.1f at most", float64(last)/1e6, maxShimRSS/1e6)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", shims[0]))
		if err != nil {
			t.Fatal(err)
		}
		if last = rss(t, string(text)); last <= maxShimRSS {
			t.Logf("shim: %.1f MB", float64(last)/1e6)
			return
		}
	}
}

// rss is the resident memory that a status of proc(5) tells, in bytes.
func rss(t *testing.T, status string) int64 {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(status))
	for lines.Scan() {
		if words := strings.Fields(lines.Text()); len(words) == 3 && words[0] == "VmRSS:" {
			kib, err := strconv.ParseInt(words[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no VmRSS in %q", status)
	return 0
}
