package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// results are samples by name, in the order in which the names first came.
type results struct {
	Image       string   `json:"image"`
	Runs        int      `json:"runs"`
	Accelerator string   `json:"accelerator"`
	CPUs        int      `json:"cpus"`
	Times       []series `json:"times"`
	Memory      []amount `json:"memory"`
}

// series are the samples of one figure, in microseconds.
type series struct {
	Name    string  `json:"name"`
	Samples []int64 `json:"samples_us"`
}

type amount struct {
	Name string `json:"name"`
	KiB  int64  `json:"kib"`
}

func newResults(image string, runs int) *results {
	return &results{Image: image, Runs: runs, CPUs: runtime.NumCPU()}
}

func (r *results) add(name string, took time.Duration) {
	i := slices.IndexFunc(r.Times, func(s series) bool { return s.Name == name })
	if i < 0 {
		r.Times = append(r.Times, series{Name: name})
		i = len(r.Times) - 1
	}
	r.Times[i].Samples = append(r.Times[i].Samples, took.Microseconds())
}

func (r *results) memory(name string, kib int64) {
	r.Memory = append(r.Memory, amount{name, kib})
}

// spread returns minimum, median and maximum. The median of an even number is
// the mean of the two in the middle.
func spread(samples []int64) (least, median, most int64) {
	if len(samples) == 0 {
		return 0, 0, 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	return sorted[0], (sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[n-1]
}

func (r *results) median(name string) int64 {
	for _, s := range r.Times {
		if s.Name == name {
			_, median, _ := spread(s.Samples)
			return median
		}
	}
	return 0
}

// markdown is the report for people.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d runs, %s, %d CPUs\n\n", r.Image, r.Runs, r.Accelerator, r.CPUs)
	fmt.Fprintf(&b, "| %-52s | %9s | %9s | %9s |\n|%s|%s|%s|%s|\n", "milliseconds", "median", "least", "most",
		strings.Repeat("-", 54), strings.Repeat("-", 10)+":", strings.Repeat("-", 10)+":", strings.Repeat("-", 10)+":")
	for _, s := range r.Times {
		least, median, most := spread(s.Samples)
		fmt.Fprintf(&b, "| %-52s | %9s | %9s | %9s |\n", s.Name, ms(median), ms(least), ms(most))
	}
	if low := r.median(floor); low > 0 {
		fmt.Fprintf(&b, "\nQEMU exec to agent is %.2f of the floor (aim: 1.15). The host's own work is %s ms (aim: 300).\n",
			float64(r.median(toAgent))/float64(low), ms(r.median(hostWork)))
	}
	fmt.Fprintf(&b, "\n| %-28s | %9s |\n|%s|%s|\n", "memory", "MiB", strings.Repeat("-", 30), strings.Repeat("-", 10)+":")
	for _, m := range r.Memory {
		fmt.Fprintf(&b, "| %-28s | %9.1f |\n", m.Name, float64(m.KiB)/1024)
	}
	return b.String()
}

func ms(us int64) string { return fmt.Sprintf("%.1f", float64(us)/1000) }

// write prints the report and writes it and the samples.
func (r *results) write(dir string) error {
	slices.SortFunc(r.Memory, func(x, y amount) int { return strings.Compare(x.Name, y.Name) })
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := r.markdown()
	fmt.Printf("\n%s\n", text)
	if err := os.WriteFile(filepath.Join(dir, "results.md"), []byte(text), 0o644); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.json"), append(data, '\n'), 0o644)
}
