package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// samples are a report as test/bench/figures writes it.
const samples = `{
  "title": "A start", "machine": [{"name": "memory", "value": "2 pages"}],
  "tables": [
    {"title": "phases", "unit": "ms", "chart": {"kind": "spans", "name": "start"}, "rows": [
      {"name": "boot", "samples": [30, 50, 40], "begins": [1, 2, 3]},
      {"name": "plan", "samples": [2, 2, 2], "begins": [1, 1, 1]},
      {"name": "floor", "samples": [20]}]},
    {"title": "reads", "unit": "MB/s", "chart": {"kind": "bars", "name": "reads"}, "rows": [
      {"name": "raw", "samples": [100, 90]}, {"name": "vmdk <merged>", "samples": [99]}, {"name": "refused", "samples": []}]},
    {"title": "plans", "unit": "ms", "chart": {"kind": "lines", "name": "plans", "x": "layers"}, "rows": [
      {"name": "1 layer", "samples": [1], "point": {"line": "merged", "x": 1}},
      {"name": "9 layers", "samples": [3], "point": {"line": "merged", "x": 9}},
      {"name": "9 layers apart", "samples": [4], "point": {"line": "apart", "x": 9}}]},
    {"title": "not drawn", "unit": "MiB", "rows": [{"name": "shim", "samples": [15]}]}
  ]}`

// texts of an SVG, which must be XML.
func texts(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []string
	inText := false
	for decoder := xml.NewDecoder(f); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return strings.Join(all, "\n")
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			inText = token.Name.Local == "text"
		case xml.EndElement:
			inText = false
		case xml.CharData:
			if inText {
				all = append(all, string(token))
			}
		}
	}
}

func TestThePageHasEveryReportAndItsDrawings(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"run.md": "# A start\n\nsome table\n", "run.json": samples,
		"words.md": "# Only words\n\nanother table\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := write(dir, []string{"words", "run", "never"}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, page))
	if err != nil {
		t.Fatal(err)
	}
	const want = `# What was measured

| machine | |
|---|---|
| memory | 2 pages |

## Only words

another table

## A start

some table

![phases](start.svg)

![reads](reads.svg)

![plans](plans.svg)
`
	if string(got) != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	for name, wants := range map[string][]string{
		"start.svg": {"boot, 40.0", "plan, 2.0", "ms, medians"},
		"reads.svg": {"raw", "vmdk <merged>", "MB/s, median and range"},
		"plans.svg": {"merged", "apart", "layers", "ms"},
	} {
		text := texts(t, filepath.Join(dir, name))
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("%s does not say %q:\n%s", name, want, text)
			}
		}
		for _, never := range []string{"floor", "refused"} {
			if strings.Contains(text, never) {
				t.Errorf("%s has %q, which cannot be drawn", name, never)
			}
		}
	}
}

func TestNoReportsAreAnError(t *testing.T) {
	if err := write(t.TempDir(), []string{"run"}); err == nil || !strings.Contains(err.Error(), "make bench") {
		t.Errorf("the error is %v, and does not say how to make one", err)
	}
}

func TestAChartThatIsUnknownIsAnError(t *testing.T) {
	for _, c := range []table{
		{Title: "x", Chart: &chart{Kind: "cake"}, Rows: []row{{Samples: []float64{1}}}},
		{Title: "x", Chart: &chart{Kind: "bars"}},
		{Title: "x", Chart: &chart{Kind: "lines"}, Rows: []row{{Samples: []float64{1}}}},
		{Title: "x", Chart: &chart{Kind: "spans"}, Rows: []row{{Samples: []float64{1}}}},
	} {
		if _, err := draw(c); err == nil {
			t.Errorf("%s: drawn", c.Chart.Kind)
		}
	}
}
