// Package tally reads what a test binary of Go prints, counts its tests, and
// holds those that were skipped against a list that gives the reason of each.
//
// A test with subtests is not counted, since they are, unless it failed and none
// of them did. The package starts nothing and writes nothing; a Tally is for one
// goroutine.
package tally

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Outcome is how a test ended.
type Outcome int

const (
	// Unfinished is a test whose end was not seen: the binary was killed, or
	// its time was over.
	Unfinished Outcome = iota
	Passed
	Failed
	Skipped
)

func (o Outcome) String() string {
	return [...]string{"unfinished", "passed", "failed", "skipped"}[o]
}

// Test is one test or subtest.
type Test struct {
	Name    string // with slashes between a test and its subtests
	Outcome Outcome
	Took    time.Duration
	Output  []string // its lines
}

// event is one line of `go tool test2json` (go doc cmd/test2json).
type event struct {
	Action  string
	Test    string
	Elapsed float64 // seconds
	Output  string
}

// Tally is the tests of one or more runs.
type Tally struct {
	tests  []*Test // in the order in which they began
	byName map[string]*Test
	parent map[string]bool // has subtests
	loose  []string        // output that is no test's
}

// New returns an empty Tally.
func New() *Tally {
	return &Tally{byName: map[string]*Test{}, parent: map[string]bool{}}
}

// maxOutput bounds the lines that are kept of one test; the last ones count.
const maxOutput = 400

// Read takes in the events of a run until their end. ended, if not nil, is called
// with each test when it ends.
func (t *Tally) Read(r io.Reader, ended func(*Test)) error {
	for events := json.NewDecoder(r); ; {
		var e event
		if err := events.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the events of the tests: %w", err)
		}
		if test := t.take(e); test != nil && ended != nil {
			ended(test)
		}
	}
}

// take takes in one event, and returns the test that it ends.
func (t *Tally) take(e event) *Test {
	if e.Test == "" {
		if e.Action == "output" {
			t.loose = keep(t.loose, e.Output)
		}
		return nil
	}
	test := t.test(e.Test)
	switch e.Action {
	case "output":
		test.Output = keep(test.Output, e.Output)
		return nil
	case "pass":
		test.Outcome = Passed
	case "fail":
		test.Outcome = Failed
	case "skip":
		test.Outcome = Skipped
	default:
		return nil
	}
	test.Took = time.Duration(e.Elapsed * float64(time.Second))
	return test
}

func (t *Tally) test(name string) *Test {
	if test := t.byName[name]; test != nil {
		return test
	}
	test := &Test{Name: name}
	t.byName[name] = test
	t.tests = append(t.tests, test)
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		t.parent[name[:i]] = true
	}
	return test
}

func keep(lines []string, line string) []string {
	if len(lines) >= maxOutput {
		lines = lines[1:]
	}
	return append(lines, line)
}

// Add takes in the tests of another Tally, which has none of the same name.
func (t *Tally) Add(o *Tally) {
	t.tests = append(t.tests, o.tests...)
	t.loose = append(t.loose, o.loose...)
	maps.Copy(t.byName, o.byName)
	maps.Copy(t.parent, o.parent)
}

// Counted are the tests that count, in the order in which they began.
func (t *Tally) Counted() []*Test {
	var counted []*Test
	for _, test := range t.tests {
		if !t.parent[test.Name] || test.Outcome != Passed && test.Outcome != Skipped && !t.failedBelow(test.Name) {
			counted = append(counted, test)
		}
	}
	return counted
}

func (t *Tally) failedBelow(name string) bool {
	return slices.ContainsFunc(t.tests, func(o *Test) bool {
		return strings.HasPrefix(o.Name, name+"/") && (o.Outcome == Failed || o.Outcome == Unfinished)
	})
}

// Loose is what was printed outside of tests, its last lines.
func (t *Tally) Loose() []string { return t.loose }

// Verdict is what comes of a run.
type Verdict struct {
	Passed, Failed, Skipped int
	// Wrong says, one line each, which tests failed, and how those that were
	// skipped differ from the list.
	Wrong []string
}

// String is the closing line.
func (v Verdict) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", v.Passed, v.Failed, v.Skipped)
}

// Judge holds the tests against the list. Those of the list that were left out
// of the run are skipped, and must be in known, the names of all tests. If the
// run was only a part of the suite, what it does not have is not missed.
func (t *Tally) Judge(list List, known func(name string) bool, part bool) Verdict {
	var v Verdict
	wrong := func(format string, args ...any) { v.Wrong = append(v.Wrong, fmt.Sprintf(format, args...)) }
	for _, test := range t.Counted() {
		switch test.Outcome {
		case Passed:
			v.Passed++
		case Skipped:
			v.Skipped++
			if s, listed := list.find(test.Name); !listed || s.Out {
				wrong("%s skips itself, which the list does not have", test.Name)
			}
		default:
			v.Failed++
			wrong("%s %s", test.Name, test.Outcome)
		}
	}
	for _, s := range list {
		test := t.byName[s.Name]
		switch {
		case s.Out && !known(s.Name):
			wrong("%s is listed, and there is no such test", s.Name)
		case s.Out && test != nil:
			wrong("%s is listed as left out, and ran", s.Name)
		case s.Out && !part:
			v.Skipped++
		case !s.Out && test == nil && !part:
			wrong("%s is listed, and there is no such test", s.Name)
		case !s.Out && test != nil && test.Outcome == Passed:
			wrong("%s is listed as skipped, and passed", s.Name)
		}
	}
	return v
}
