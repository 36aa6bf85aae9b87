// Package figures keeps the samples of a benchmark and makes the reports of
// them: medians, and ratios of samples that were taken in turn.
//
// It owns the shape of the reports and their files. It measures nothing, starts
// no goroutine, and a Report is used by one goroutine at a time.
package figures

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Report is everything that one run has measured.
type Report struct {
	Title   string   `json:"title"`
	Host    string   `json:"host"` // what ran it, in a line
	Machine []Fact   `json:"machine,omitempty"`
	Tables  []*Table `json:"tables"`
}

// Fact is something about the machine, or a version of what was measured.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Table is a list of figures in one unit.
type Table struct {
	Title string   `json:"title"`
	Unit  string   `json:"unit"`
	More  []string `json:"more,omitempty"` // headings of what rows say besides
	Rows  []*Row   `json:"rows"`
	Notes []string `json:"notes,omitempty"`
	Chart *Chart   `json:"chart,omitempty"` // nil for a table that is not drawn
}

// Row is one figure. Sample i was taken right before or after sample i of the
// row against which it is held.
type Row struct {
	Name    string    `json:"name"`
	Against string    `json:"against,omitempty"` // the name of a row of the table
	Samples []float64 `json:"samples"`
	More    []string  `json:"more,omitempty"`
	Point   *Point    `json:"point,omitempty"`  // in a table that is drawn as Lines
	Begins  []float64 `json:"begins,omitempty"` // where each sample begins, in a table that is drawn as Spans
}

// Table adds a table.
func (r *Report) Table(title, unit string, more ...string) *Table {
	t := &Table{Title: title, Unit: unit, More: more}
	r.Tables = append(r.Tables, t)
	return t
}

// Row is the row of that name. It is added if there is none, and is then held
// against another one, unless against is "".
func (t *Table) Row(name, against string) *Row {
	if r := t.find(name); r != nil {
		return r
	}
	r := &Row{Name: name, Against: against, Samples: []float64{}}
	t.Rows = append(t.Rows, r)
	return r
}

func (t *Table) find(name string) *Row {
	for _, r := range t.Rows {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// Note adds a line below the table.
func (t *Table) Note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

// Add adds a sample.
func (r *Row) Add(sample float64) { r.Samples = append(r.Samples, sample) }

// Spread is the least, the middle and the largest of samples; of an even number
// the middle is the mean of two. Without samples it is not ok.
func Spread(samples []float64) (least, median, most float64, ok bool) {
	if len(samples) == 0 {
		return 0, 0, 0, false
	}
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	return sorted[0], (sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[n-1], true
}

// Ratios are those of a row's samples to the samples of the row that it is held
// against, pair by pair; nil if it is held against none, or if the samples are no
// pairs.
func (t *Table) Ratios(r *Row) []float64 {
	base := t.find(r.Against)
	if r.Against == "" || base == nil || len(base.Samples) != len(r.Samples) {
		return nil
	}
	ratios := make([]float64, len(r.Samples))
	for i, s := range r.Samples {
		if base.Samples[i] == 0 {
			return nil
		}
		ratios[i] = s / base.Samples[i]
	}
	return ratios
}

// Markdown is the report for people.
func (r *Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s\n", r.Title, r.Host)
	for _, t := range r.Tables {
		b.WriteString("\n" + t.markdown())
	}
	return b.String()
}

// against are the rows against which others are held.
func (t *Table) against() []string {
	var names []string
	for _, r := range t.Rows {
		if r.Against != "" && !slices.Contains(names, r.Against) {
			names = append(names, r.Against)
		}
	}
	return names
}

func (t *Table) markdown() string {
	head := []string{t.Title + ", " + t.Unit, "median", "least", "most"}
	against, notes := t.against(), slices.Clone(t.Notes)
	if len(against) > 0 {
		head = append(head, "ratio", "its range")
	}
	switch len(against) {
	case 0:
	case 1:
		notes = append([]string{"Ratios are to " + against[0] + "."}, notes...)
	default:
		head = append(head, "to")
	}
	lines := [][]string{append(head, t.More...)}
	for _, r := range t.Rows {
		line := append([]string{r.Name}, spreadCells(r.Samples)...)
		if len(against) > 0 {
			line = append(line, ratioCells(t.Ratios(r))...)
		}
		if len(against) > 1 {
			line = append(line, r.Against)
		}
		line = append(line, r.More...)
		for len(line) < len(lines[0]) {
			line = append(line, "")
		}
		lines = append(lines, line)
	}
	var b strings.Builder
	align(&b, lines)
	for _, n := range notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	return b.String()
}

func spreadCells(samples []float64) []string {
	least, median, most, ok := Spread(samples)
	if !ok {
		return []string{"–", "", ""}
	}
	return []string{digits(median), digits(least), digits(most)}
}

func ratioCells(ratios []float64) []string {
	least, median, most, ok := Spread(ratios)
	if !ok {
		return []string{"", ""}
	}
	return []string{fmt.Sprintf("%.2f", median), fmt.Sprintf("%.2f–%.2f", least, most)}
}

// digits has about three that count.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// align writes a table of Markdown whose columns line up, the first one and the
// names to the left. The first line is the head.
func align(b *strings.Builder, lines [][]string) {
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	write := func(line []string) {
		for i, cell := range line {
			pad := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if i == 0 {
				fmt.Fprintf(b, "| %s%s ", cell, pad)
			} else {
				fmt.Fprintf(b, "| %s%s ", pad, cell)
			}
		}
		b.WriteString("|\n")
	}
	write(lines[0])
	for i, w := range widths {
		if i == 0 {
			b.WriteString("|" + strings.Repeat("-", w+2))
		} else {
			b.WriteString("|" + strings.Repeat("-", w+1) + ":")
		}
	}
	b.WriteString("|\n")
	for _, line := range lines[1:] {
		write(line)
	}
}

// Write writes name.md and name.json into dir, which is made.
func (r *Report) Write(dir, name string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("report %s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".md"), []byte(r.Markdown()), 0o644)
}
