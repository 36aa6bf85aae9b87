package tally

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// run is what a test binary prints with -test.v=test2json, as test2json has it.
const run = `{"Action":"start"}
{"Action":"run","Test":"TestA"}
{"Action":"output","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"pass","Test":"TestA","Elapsed":1.5}
{"Action":"run","Test":"TestB"}
{"Action":"run","Test":"TestB/one"}
{"Action":"output","Test":"TestB/one","Output":"    b_test.go:1: it is broken\n"}
{"Action":"fail","Test":"TestB/one","Elapsed":0}
{"Action":"run","Test":"TestB/two"}
{"Action":"skip","Test":"TestB/two","Elapsed":0}
{"Action":"fail","Test":"TestB","Elapsed":0}
{"Action":"run","Test":"TestC"}
{"Action":"run","Test":"TestC/one"}
{"Action":"pass","Test":"TestC/one","Elapsed":0}
{"Action":"output","Test":"TestC","Output":"    c_test.go:9: a process is left\n"}
{"Action":"fail","Test":"TestC","Elapsed":0}
{"Action":"run","Test":"TestD"}
{"Action":"run","Test":"TestD/one"}
{"Action":"output","Output":"panic: test timed out\n"}
{"Action":"fail"}
`

func read(t *testing.T, text string) *Tally {
	t.Helper()
	tally := New()
	if err := tally.Read(strings.NewReader(text), nil); err != nil {
		t.Fatal(err)
	}
	return tally
}

// TestParentsCountOnlyForThemselves: a test with subtests counts if it failed
// and none of them did, such as when it finds that something was left.
func TestParentsCountOnlyForThemselves(t *testing.T) {
	var got []string
	for _, test := range read(t, run).Counted() {
		got = append(got, test.Name+" "+test.Outcome.String())
	}
	want := []string{
		"TestA passed", "TestB/one failed", "TestB/two skipped", "TestC failed", "TestC/one passed", "TestD/one unfinished",
	}
	if !slices.Equal(got, want) {
		t.Errorf("counted\n%q, want\n%q", got, want)
	}
}

func all(string) bool { return true }

// TestExactlyTheListedTestsAreSkipped: whatever the list and the run do not
// agree on is named.
func TestExactlyTheListedTestsAreSkipped(t *testing.T) {
	const passes = `{"Action":"run","Test":"TestA"}
{"Action":"pass","Test":"TestA"}
{"Action":"run","Test":"TestS"}
{"Action":"skip","Test":"TestS"}
`
	for _, c := range []struct {
		name  string
		list  List
		known func(string) bool
		part  bool
		line  string
		wrong string // a part of the only complaint, "" for none
	}{
		{name: "as listed", list: List{{Name: "TestS"}, {Name: "TestOut", Out: true}}, line: "1 passed, 0 failed, 2 skipped"},
		{name: "not listed", list: nil, line: "1 passed, 0 failed, 1 skipped", wrong: "TestS skips itself"},
		{name: "listed as left out, and ran", list: List{{Name: "TestS"}, {Name: "TestA", Out: true}}, line: "1 passed, 0 failed, 1 skipped", wrong: "TestA is listed as left out, and ran"},
		{name: "passes now", list: List{{Name: "TestS"}, {Name: "TestA"}}, line: "1 passed, 0 failed, 1 skipped", wrong: "TestA is listed as skipped, and passed"},
		{name: "gone", list: List{{Name: "TestS"}, {Name: "TestGone"}}, line: "1 passed, 0 failed, 1 skipped", wrong: "TestGone is listed, and there is no such test"},
		{name: "left out and gone", list: List{{Name: "TestS"}, {Name: "TestGone", Out: true}}, known: func(string) bool { return false }, line: "1 passed, 0 failed, 1 skipped", wrong: "TestGone is listed, and there is no such test"},
		{name: "a part", list: List{{Name: "TestS"}, {Name: "TestElse"}, {Name: "TestOut", Out: true}}, part: true, line: "1 passed, 0 failed, 1 skipped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			known := c.known
			if known == nil {
				known = all
			}
			v := read(t, passes).Judge(c.list, known, c.part)
			if v.String() != c.line {
				t.Errorf("closing line %q, want %q", v, c.line)
			}
			if c.wrong == "" && len(v.Wrong) != 0 || c.wrong != "" && (len(v.Wrong) != 1 || !strings.Contains(v.Wrong[0], c.wrong)) {
				t.Errorf("wrong: %q, want %q", v.Wrong, c.wrong)
			}
		})
	}
}

func TestRunsAddUp(t *testing.T) {
	one, other := read(t, run), read(t, `{"Action":"run","Test":"TestZ"}
{"Action":"pass","Test":"TestZ"}
`)
	one.Add(other)
	if v := one.Judge(List{{Name: "TestB/two"}, {Name: "TestZ"}}, all, false); v.String() != "3 passed, 3 failed, 1 skipped" || len(v.Wrong) != 4 {
		t.Errorf("closing line %q, wrong %q", v, v.Wrong)
	}
}

func TestFailuresAreNamed(t *testing.T) {
	v := read(t, run).Judge(List{{Name: "TestB/two"}}, all, false)
	if v.String() != "2 passed, 3 failed, 1 skipped" {
		t.Errorf("closing line %q", v)
	}
	want := []string{"TestB/one failed", "TestC failed", "TestD/one unfinished"}
	if !slices.Equal(v.Wrong, want) {
		t.Errorf("wrong %q, want %q", v.Wrong, want)
	}
}

func TestListsAreReadFromThePage(t *testing.T) {
	lists, err := ParseLists("# Skips\n\n| not | a | list |\n\n## one\n\ntext\n\n| test | how | reason |\n|---|---|---|\n" +
		"| `TestA/b` | left out | it is physical |\n| `TestC` | itself | so is this |\n\n## two\n")
	if err != nil {
		t.Fatal(err)
	}
	want := List{{Name: "TestA/b", Out: true, Reason: "it is physical"}, {Name: "TestC", Reason: "so is this"}}
	if !slices.Equal(lists["one"], want) || len(lists) != 2 {
		t.Errorf("lists %v", lists)
	}
	slow := List{{Name: "TestA", Emulated: true}}
	if got := slow.On(true); len(got) != 1 || !got[0].Out || len(slow.On(false)) != 0 {
		t.Errorf("on a host that emulates %v, elsewhere %v", got, slow.On(false))
	}
	if got := lists["one"].Pattern(); got != "^TestA$/^b$" {
		t.Errorf("pattern %q", got)
	}
	for _, row := range []string{
		"| `TestA` | left out |", "| TestA | left out | why |", "| `TestA` | perhaps | why |", "| `TestA` | itself | |",
		"| `TestA` | itself | why |\n| `TestA` | itself | why |",
	} {
		if _, err := ParseLists("## one\n" + row + "\n"); err == nil {
			t.Errorf("%q is taken", row)
		}
	}
}

// TestAPatternLeavesOutWhatIsListed asks package testing itself.
func TestAPatternLeavesOutWhatIsListed(t *testing.T) {
	list := List{{Name: "TestSample/left_out", Out: true}, {Name: "TestListsAreReadFromThePage", Out: true}}
	out, err := exec.Command("/proc/self/exe", "-test.v", "-test.run", "^(TestSample|TestListsAreReadFromThePage)$", "-test.skip", list.Pattern()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, ran := range map[string]bool{"TestSample/left_out": false, "TestSample/left_out_not": true, "TestListsAreReadFromThePage": false} {
		if strings.Contains(string(out), "RUN   "+name+"\n") != ran {
			t.Errorf("%s ran: %v\n%s", name, !ran, out)
		}
	}
}

func TestSample(t *testing.T) {
	t.Run("left out", func(*testing.T) {})
	t.Run("left out not", func(*testing.T) {})
}
