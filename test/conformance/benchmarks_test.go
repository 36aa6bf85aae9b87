package main

import (
	"slices"
	"testing"
)

func TestBenchmarksAreReadAsTheyArePrinted(t *testing.T) {
	got, err := parseBenchmarks(`goos: linux
BenchmarkRun/Lifecycle-2         	       3	 292316764 ns/op	       165.9 ms/create	         9.278 ms/wait
BenchmarkExec/StdioRoundTrip/4MB-2  	       3	  14669465 ns/op	 285.92 MB/s	 12 B/op
PASS
`)
	want := []figure{
		{name: "Run/Lifecycle", value: 292.316764},
		{name: "Run/Lifecycle, create", value: 165.9},
		{name: "Run/Lifecycle, wait", value: 9.278},
		{name: "Exec/StdioRoundTrip/4MB", value: 14.669465},
		{name: "Exec/StdioRoundTrip/4MB", value: 285.92, rate: true},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v\n%+v, want\n%+v", err, got, want)
	}
	for _, text := range []string{"PASS\n", "BenchmarkRun/Lifecycle-2 3 many ns/op\n"} {
		if got, err := parseBenchmarks(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
