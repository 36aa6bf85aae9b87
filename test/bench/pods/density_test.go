package main

import (
	"os"
	"slices"
	"testing"
)

func TestTheSlopeIsWhatOneMorePodCosts(t *testing.T) {
	counts := []int{1, 5, 11}
	sums := []map[string]float64{{together: 300}, {together: 1000}, {together: 2300}}
	if got, ok := slope(counts, sums, together); got != 200 || !ok {
		t.Errorf("%v, %v, want 200", got, ok)
	}
	if got, ok := slope(counts[:1], sums[:1], together); ok {
		t.Errorf("of one point: %v", got)
	}
}

func TestCountsAscend(t *testing.T) {
	if got, err := parseCounts("pods", "1,5,10"); err != nil || !slices.Equal(got, []int{1, 5, 10}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", "0", "5,1", "2,2", "1,x"} {
		if got, err := parseCounts("pods", text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestThePSSOfAProcessIsRead(t *testing.T) {
	if kib, err := pss(os.Getpid()); err != nil || kib < 100 {
		t.Errorf("%d KiB, %v", kib, err)
	}
}
