package main

import (
	"strings"
	"testing"
	"time"
)

func TestSpreadTakesTheMiddle(t *testing.T) {
	for _, c := range []struct {
		samples             []int64
		least, median, most int64
	}{
		{nil, 0, 0, 0},
		{[]int64{5}, 5, 5, 5},
		{[]int64{9, 1, 5}, 1, 5, 9},
		{[]int64{4, 1, 2, 9}, 1, 3, 9},
	} {
		least, median, most := spread(c.samples)
		if least != c.least || median != c.median || most != c.most {
			t.Errorf("%v: %d, %d, %d", c.samples, least, median, most)
		}
	}
}

func TestReportHoldsTheBootAgainstTheFloor(t *testing.T) {
	r := newResults("image", 1)
	r.add(toAgent, 2300*time.Millisecond)
	r.add(floor, 2000*time.Millisecond)
	r.add(hostWork, 123*time.Millisecond)
	r.memory("shim RSS", 2048)
	for _, want := range []string{"1.15 of the floor", "123.0 ms", "| shim RSS", "2.0 |"} {
		if text := r.markdown(); !strings.Contains(text, want) {
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
