package main

import (
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
