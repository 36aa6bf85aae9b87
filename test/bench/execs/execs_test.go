package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/test/bench/figures"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOneInAHundredExceedsTheP99(t *testing.T) {
	var samples []float64
	for i := range 200 {
		samples = append(samples, float64(200-i))
	}
	for _, c := range []struct {
		samples []float64
		want    string
	}{
		{nil, "–"}, {[]float64{7}, "7.0"}, {[]float64{3, 1, 2}, "3.0"}, {samples, "198.0"},
	} {
		if got := p99(c.samples); got != c.want {
			t.Errorf("of %d samples: %s, want %s", len(c.samples), got, c.want)
		}
	}
}

func TestFieldReadsWhatProcWrites(t *testing.T) {
	text := "Name:\tinit\nVmRSS:\t   2048 kB\nPss:  512 kB\n9\n"
	if got, err := field(text, "VmRSS:"); err != nil || got != 2 {
		t.Errorf("%v MiB, %v", got, err)
	}
	if _, err := field(text, "Rss:"); err == nil {
		t.Error("a field that is not there was found")
	}
}

func TestAStreamThatIsNotWholeIsAnError(t *testing.T) {
	for _, c := range []struct {
		length int64
		want   bool
	}{{99, false}, {100, true}, {101, false}} {
		b := &bench{options: options{size: 100}}
		if _, err := b.counted(io.LimitReader(zeroes{}, c.length).Read); (err == nil) != c.want {
			t.Errorf("%d bytes of 100: %v", c.length, err)
		}
	}
	gone := errors.New("gone")
	b := &bench{options: options{size: 100}}
	if _, err := b.counted(func([]byte) (int, error) { return 0, gone }); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

func TestAfterIsHeldAgainstBefore(t *testing.T) {
	var report figures.Report
	table := report.Table("memory", "MiB")
	compare(table, "MiB", []amount{{"shim RSS", "MiB", 10}, {"shim", "descriptors", 3}}, []amount{{"shim RSS", "MiB", 15}, {"shim", "descriptors", 4}})
	if len(table.Rows) != 2 || !slices.Equal(table.Ratios(table.Rows[1]), []float64{1.5}) {
		t.Errorf("%s", report.Markdown())
	}
	if text := report.Markdown(); strings.Contains(text, "descriptors") {
		t.Errorf("another unit is in it:\n%s", text)
	}
}
