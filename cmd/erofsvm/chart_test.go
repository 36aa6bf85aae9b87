package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// argument is one of a container's args in what the chart renders.
var argument = regexp.MustCompile(`(?m)^ {12}- "?(--[a-z-]+(?:=[^"\n]*)?|install|uninstall|label)"?$`)

// commandLines are those of the containers in a rendered chart.
func commandLines(t *testing.T, golden string) [][]string {
	t.Helper()
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]string
	for _, m := range argument.FindAllSubmatch(text, -1) {
		if word := string(m[1]); word[0] != '-' {
			lines = append(lines, []string{word})
		} else {
			lines[len(lines)-1] = append(lines[len(lines)-1], word)
		}
	}
	return lines
}

// TestTheChartCallsThisProgramAsItIsCalled: the chart is tested in a module of its
// own, which does not know the program's flags.
func TestTheChartCallsThisProgramAsItIsCalled(t *testing.T) {
	found, err := filepath.Glob("../../test/kubernetes/testdata/*.yaml")
	if err != nil || len(found) < 3 {
		t.Fatalf("%q, %v: the golden files are gone", found, err)
	}
	for _, golden := range found {
		lines := commandLines(t, golden)
		if len(lines) != 2 {
			t.Errorf("%s has %q, want an installation and a labelling", golden, lines)
		}
		for _, line := range lines {
			cmd, rest, err := command().Find(line)
			if err == nil {
				err = cmd.ParseFlags(rest)
			}
			if err != nil || len(cmd.Flags().Args()) > 0 {
				t.Errorf("%s: %q: %v, and %q is left", golden, line, err, cmd.Flags().Args())
			}
		}
	}
}

// TestTheChartsDefaultsAreTheProgramsOwn but for those that say where it runs.
func TestTheChartsDefaultsAreTheProgramsOwn(t *testing.T) {
	others := []string{"root", "skip-unfit", "restart", "shim"}
	for _, line := range commandLines(t, "../../test/kubernetes/testdata/default.yaml") {
		cmd, rest, err := command().Find(line)
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, arg := range rest {
			name := regexp.MustCompile(`^--([a-z-]+)`).FindStringSubmatch(arg)[1]
			if f := cmd.Flags().Lookup(name); f.Value.String() != f.DefValue && !slices.Contains(others, name) {
				t.Errorf("%s --%s is %s in the chart, and %s by itself", line[0], name, f.Value, f.DefValue)
			}
		}
	}
}
