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
// them. Of the agent's, 8.5 MB are its program, which lies in the guest's memory as the
// initramfs does (docs/performance.md).
const (
	maxShimRSS  = 15_000_000
	maxAgentRSS = 12_000_000
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

// TestMemoryThatIsFreedGoesBack: what a container gives back to the guest's kernel the
// guest gives back to the host, by itself.
func TestMemoryThatIsFreedGoesBack(t *testing.T) {
	const mib = 96
	bed := e2etest.Newest(t)
	c := bed.Start(t, e2etest.Spec{Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sh", "-c", "mount && exec sleep 1000"},
		Opts: []oci.SpecOpts{oci.WithMounts([]specs.Mount{{Destination: "/much", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=128m"}}})}})
	vms, err := bed.VMs()
	if err != nil || len(vms) != 1 {
		t.Fatalf("virtual machines %v, %v", vms, err)
	}
	resident := func() int64 {
		t.Helper()
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vms[0]))
		if err != nil {
			t.Fatal(err)
		}
		return rss(t, string(text))
	}
	if _, errs, code := c.RunExec(t, "dd", "if=/dev/urandom", "of=/much/file", "bs=1M", fmt.Sprint("count=", mib)); code != 0 {
		t.Fatalf("dd: code %d: %s", code, errs)
	}
	full := resident()
	if _, errs, code := c.RunExec(t, "rm", "/much/file"); code != 0 {
		t.Fatalf("rm: code %d: %s", code, errs)
	}
	// The kernel reports in steps, two seconds apart (mm/page_reporting.c).
	least := full
	for tick, deadline := time.NewTicker(200*time.Millisecond), time.After(e2etest.Step); full-least < mib<<20*3/4; {
		select {
		case <-tick.C:
			least = min(least, resident())
		case <-deadline:
			t.Fatalf("of %d MiB that were freed, QEMU has given back %.1f of its %.1f", mib, float64(full-least)/(1<<20), float64(full)/(1<<20))
		}
	}
	t.Logf("QEMU: %.1f MiB, then %.1f", float64(full)/(1<<20), float64(least)/(1<<20))
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
