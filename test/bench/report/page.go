package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// These are what the page reads of the files of test/bench/figures.
type (
	report struct {
		Title   string  `json:"title"`
		Machine []fact  `json:"machine"`
		Tables  []table `json:"tables"`
	}
	fact struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	table struct {
		Title string `json:"title"`
		Unit  string `json:"unit"`
		Rows  []row  `json:"rows"`
		Chart *chart `json:"chart"`
	}
	chart struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
		X    string `json:"x"`
	}
	row struct {
		Name    string    `json:"name"`
		Samples []float64 `json:"samples"`
		Begins  []float64 `json:"begins"`
		Point   *point    `json:"point"`
	}
	point struct {
		Line string  `json:"line"`
		X    float64 `json:"x"`
	}
)

const page = "report.md"

// write makes the page of the reports that are there, and their drawings.
func write(dir string, names []string) error {
	var machine []fact
	var body strings.Builder
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name+".md"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		r, err := read(filepath.Join(dir, name+".json"))
		if err != nil {
			return err
		}
		if machine == nil {
			machine = r.Machine
		}
		// The report's own heading becomes one of the page.
		body.WriteString("\n" + strings.Replace(strings.TrimSpace(string(text)), "# ", "## ", 1) + "\n")
		if err := drawings(dir, r, &body); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if body.Len() == 0 {
		return fmt.Errorf("%s has none of the reports %s: make bench", dir, strings.Join(names, ", "))
	}
	text := "# What was measured\n" + factTable(machine) + body.String()
	return os.WriteFile(filepath.Join(dir, page), []byte(text), 0o644)
}

// read reads the samples of a report. One that has none is no error: its text is
// all there is to say.
func read(path string) (r report, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func drawings(dir string, r report, b *strings.Builder) error {
	for _, t := range r.Tables {
		if t.Chart == nil {
			continue
		}
		svg, err := draw(t)
		if err != nil {
			return fmt.Errorf("draw %q: %w", t.Title, err)
		}
		file := t.Chart.Name + ".svg"
		if err := os.WriteFile(filepath.Join(dir, file), svg, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(b, "\n![%s](%s)\n", t.Title, file)
	}
	return nil
}

func factTable(facts []fact) string {
	if len(facts) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n| machine | |\n|---|---|\n")
	for _, f := range facts {
		fmt.Fprintf(&b, "| %s | %s |\n", f.Name, f.Value)
	}
	return b.String()
}
