package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// unexplained is how much of a start may be covered by none of its steps.
const unexplained = 0.05

// TestTheStartHasNoGaps: the steps of a start, which the shim writes down as spans,
// account for the time between the call that creates the task and the container's
// first instruction; and that time is what the client has waited.
func TestTheStartHasNoGaps(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "two", harness.Snapshotter)
	asked := time.Now()
	c := bed.Start(t, e2etest.Spec{Image: image, Args: []string{"true"}})
	had := time.Now()
	spans, err := bed.Spans(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if code := c.WaitExit(t); code != 0 {
		t.Errorf("code %d", code)
	}

	var table strings.Builder
	names := map[string]harness.Span{}
	for _, s := range spans {
		fmt.Fprintf(&table, "%-18s %8.1f ms %8.1f ms\n", s.Name, s.Start.Sub(asked).Seconds()*1e3, s.End.Sub(s.Start).Seconds()*1e3)
		names[s.Name] = s
		if s.Error != "" {
			t.Errorf("%s: %s", s.Name, s.Error)
		}
	}
	for _, name := range []string{"shim start", "wait for create", "plan", "qemu exec", "guest boot", "personalise", "attach", "container create", "wait for start", "container start"} {
		if _, ok := names[name]; !ok {
			t.Errorf("no span %q", name)
		}
	}
	if attach, boot := names["attach"], names["guest boot"]; !attach.End.Before(boot.End) {
		t.Errorf("the disks were there at %v, and the guest at %v", attach.End, boot.End)
	}
	whole, ok := names["start"]
	if !ok || whole.Start.Before(asked) || whole.End.After(had) {
		t.Fatalf("the start is from %v to %v, and was asked for at %v and had at %v", whole.Start, whole.End, asked, had)
	}
	all := whole.End.Sub(whole.Start)
	var missing time.Duration
	for _, gap := range harness.Gaps(spans, whole.Start, whole.End) {
		missing += gap.Took
		if gap.Took > all/1000 {
			fmt.Fprintf(&table, "nothing for %.1f ms after %s\n", gap.Took.Seconds()*1e3, gap.After)
		}
	}
	t.Logf("%.2f %% of %v are accounted for, which are %.2f %% of what the client waited:\n%s",
		100*(1-missing.Seconds()/all.Seconds()), all, 100*all.Seconds()/had.Sub(asked).Seconds(), &table)
	if missing.Seconds() > unexplained*all.Seconds() {
		t.Errorf("%v of %v are not accounted for", missing, all)
	}
	// Before the shim there is containerd, which prepares the container and its
	// mounts, and behind it the answer to the client.
	if all.Seconds() < 0.9*had.Sub(asked).Seconds() {
		t.Errorf("the client waited %v for a start of %v", had.Sub(asked), all)
	}
}

// TestAStartThatFailsLeavesItsSpans, with the reason.
func TestAStartThatFailsLeavesItsSpans(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	if _, stderr, code := bed.CtrRun(t, nil, image, "no-start", "/no/such/command"); code == 0 {
		t.Fatalf("it started: %s", stderr)
	}
	spans, err := bed.Spans("no-start")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range spans {
		if s.Name == "start" && strings.Contains(s.Error, "/no/such/command") {
			return
		}
	}
	t.Errorf("no reason in %+v", spans)
}
