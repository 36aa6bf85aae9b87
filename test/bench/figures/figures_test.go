package figures

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestSpreadTakesTheMiddle(t *testing.T) {
	for _, c := range []struct {
		samples             []float64
		least, median, most float64
		ok                  bool
	}{
		{nil, 0, 0, 0, false},
		{[]float64{5}, 5, 5, 5, true},
		{[]float64{9, 1, 5}, 1, 5, 9, true},
		{[]float64{4, 1, 2, 9}, 1, 3, 9, true},
	} {
		least, median, most, ok := Spread(c.samples)
		if least != c.least || median != c.median || most != c.most || ok != c.ok {
			t.Errorf("%v: %v, %v, %v, %v", c.samples, least, median, most, ok)
		}
	}
}

// The ratio of the medians would be 1 here: what drifts from one pair to the next
// must not count.
func TestRatiosAreThoseOfThePairs(t *testing.T) {
	var report Report
	table := report.Table("reads", "ms")
	for _, pair := range [][2]float64{{1, 2}, {2, 4}, {4, 1}} {
		table.Row("raw", "").Add(pair[0])
		table.Row("vmdk", "raw").Add(pair[1])
	}
	if got, want := table.Ratios(table.Row("vmdk", "")), []float64{2, 2, 0.25}; !reflect.DeepEqual(got, want) {
		t.Errorf("ratios %v, want %v", got, want)
	}
	if got := table.Ratios(table.Row("raw", "")); got != nil {
		t.Errorf("a row that is held against none has ratios %v", got)
	}
	table.Row("raw", "").Add(1)
	if got := table.Ratios(table.Row("vmdk", "")); got != nil {
		t.Errorf("samples that are no pairs have ratios %v", got)
	}
}

func TestReportSaysWhatWasMeasured(t *testing.T) {
	report := Report{Title: "Disks", Host: "two cores"}
	table := report.Table("plug", "ms", "files")
	table.Row("1 extent", "").Add(12.34)
	row := table.Row("300 extents", "1 extent")
	row.Add(123.4)
	row.More = []string{"300"}
	table.Row("400 extents", "1 extent").More = []string{"refused"}
	table.Note("by %s", "paths")
	pairs := report.Table("plan", "ms")
	for _, name := range []string{"10", "100"} {
		pairs.Row(name, "").Add(1)
		pairs.Row(name+" apart", name).Add(2)
	}
	want := `# Disks

two cores

| plug, ms    | median | least | most | ratio |   its range |   files |
|-------------|-------:|------:|-----:|------:|------------:|--------:|
| 1 extent    |   12.3 |  12.3 | 12.3 |       |             |         |
| 300 extents |    123 |   123 |  123 | 10.00 | 10.00–10.00 |     300 |
| 400 extents |      – |       |      |       |             | refused |

Ratios are to 1 extent.

by paths

| plan, ms  | median | least | most | ratio | its range |  to |
|-----------|-------:|------:|-----:|------:|----------:|----:|
| 10        |   1.00 |  1.00 | 1.00 |       |           |     |
| 10 apart  |   2.00 |  2.00 | 2.00 |  2.00 | 2.00–2.00 |  10 |
| 100       |   1.00 |  1.00 | 1.00 |       |           |     |
| 100 apart |   2.00 |  2.00 | 2.00 |  2.00 | 2.00–2.00 | 100 |
`
	if got := report.Markdown(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestBothFilesAreWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	report := Report{Title: "Disks"}
	report.Table("plug", "ms").Row("1 extent", "").Add(2)
	if err := report.Write(dir, "disks"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "disks.md"))
	if err != nil || !strings.Contains(string(text), "1 extent") {
		t.Errorf("%q, %v", text, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "disks.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, report) {
		t.Errorf("%+v comes back as %+v, %v", report, back, err)
	}
}
