package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestReportHoldsTheBootAgainstTheFloor(t *testing.T) {
	r := newResults("image")
	r.add(toAgent, 2300*time.Millisecond)
	r.add(floor, 2000*time.Millisecond)
	r.add(hostWork, 123*time.Millisecond)
	r.memory("shim RSS", 2048)
	r.finish()
	for _, want := range []string{"1.15 of the floor", "123.0 ms", "| shim RSS", "2.00 |"} {
		if text := r.report.Markdown(); !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

func TestFieldReadsWhatProcWrites(t *testing.T) {
	text := "Name:\tinit\nVmRSS:\t   11220 kB\nPss:  7 kB\n"
	if got, err := field(text, "VmRSS:"); err != nil || got != 11220 {
		t.Errorf("%d, %v", got, err)
	}
	if _, err := field(text, "Rss:"); err == nil {
		t.Error("a field that is not there was found")
	}
}

func TestTheSlopeIsWhatOneMorePodCosts(t *testing.T) {
	counts := []int{1, 5, 11}
	sums := []map[string]int64{{"all": 300}, {"all": 1000}, {"all": 2300}}
	if got := slope(counts, sums); got["all"] != 200 || len(got) != 1 {
		t.Errorf("%v, want 200", got)
	}
	if got := slope(counts[:1], sums[:1]); len(got) != 0 {
		t.Errorf("of one point: %v", got)
	}
}

func TestCountsOfPodsAscend(t *testing.T) {
	if got, err := parseCounts("1,5,10"); err != nil || !slices.Equal(got, []int{1, 5, 10}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", "0", "5,1", "2,2", "1,x"} {
		if got, err := parseCounts(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}
