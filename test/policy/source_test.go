package policy

import (
	"bytes"
	"go/ast"
	"go/format"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// maxLines is where a file is asking to be two.
const maxLines = 500

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for dir, files := range packages(goFiles(t)) {
		var comment, name string
		onlyTests := true
		for _, f := range files {
			onlyTests = onlyTests && f.isTest
		}
		for _, f := range files {
			if f.isTest && !onlyTests {
				continue
			}
			name = f.syntax.Name.Name
			if f.syntax.Doc != nil && !f.generated {
				comment = f.syntax.Doc.Text()
			}
		}
		switch {
		case comment == "":
			t.Errorf("%s: package %s has no package comment: say what it owns, who may call it, what it never does", dir, name)
		case name != "main" && !strings.HasPrefix(comment, "Package "+name+" "):
			t.Errorf("%s: the package comment does not start with %q", dir, "Package "+name+" ")
		}
	}
}

func TestNoFileIsTooLong(t *testing.T) {
	for _, f := range goFiles(t) {
		if lines := bytes.Count(f.text, []byte("\n")); lines > maxLines && !f.generated {
			t.Errorf("%s has %d lines, more than %d: it is asking to be two", f.path, lines, maxLines)
		}
	}
}

func TestSourcesAreFormatted(t *testing.T) {
	for _, f := range goFiles(t) {
		want, err := format.Source(f.text)
		if err != nil {
			t.Errorf("%s: %v", f.path, err)
		} else if !bytes.Equal(want, f.text) && !f.generated {
			t.Errorf("%s is not formatted: gofmt -w %s", f.path, f.path)
		}
	}
}

// TestOnlyNeedKnowsOfCI has tests say what they need of the machine by test/need,
// so that none is skipped where it is meant to run.
func TestOnlyNeedKnowsOfCI(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.isTest && f.dir != "test/need" && bytes.Contains(f.text, []byte("Getenv("+`"CI"`+")")) {
			t.Errorf("%s asks for CI: what a test needs is said by test/need", f.path)
		}
	}
}

// TestWhatStartsGoroutinesChecksForLeaks asks of every package with a go
// statement outside its tests (commands end with their process) that its tests
// run under goleak.
func TestWhatStartsGoroutinesChecksForLeaks(t *testing.T) {
	for dir, files := range packages(goFiles(t)) {
		var starts string
		checked := false
		for _, f := range files {
			switch {
			case f.isTest:
				checked = checked || bytes.Contains(f.text, []byte("goleak.VerifyTestMain("))
			case f.syntax.Name.Name != "main" && !f.generated:
				ast.Inspect(f.syntax, func(n ast.Node) bool {
					if _, ok := n.(*ast.GoStmt); ok && starts == "" {
						starts = f.fset.Position(n.Pos()).String()
					}
					return true
				})
			}
		}
		if starts != "" && !checked {
			t.Errorf("%s starts a goroutine, but no TestMain of %s calls goleak.VerifyTestMain", starts, dir)
		}
	}
}

// TestTestsDoNotSleep: a sleep in a test is a race with the machine's load.
func TestTestsDoNotSleep(t *testing.T) {
	for _, f := range goFiles(t) {
		if !f.isTest {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
				if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" {
					t.Errorf("%s:%d: time.Sleep in a test: wait for the event", f.path, f.line(n.Pos()))
				}
			}
			return true
		})
	}
}

// TestNothingIsLeftForLater: what is not there says so with an error at run
// time; a mark in a comment says so to nobody.
func TestNothingIsLeftForLater(t *testing.T) {
	marks := []string{"TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"}
	for _, f := range goFiles(t) {
		if f.generated {
			continue
		}
		for _, group := range f.syntax.Comments {
			for _, c := range group.List {
				for _, mark := range marks {
					if strings.Contains(c.Text, mark) {
						t.Errorf("%s:%d: %s: do it, or answer a clear error and say so in the docs", f.path, f.line(c.Pos()), mark)
					}
				}
			}
		}
	}
}

// TestScriptsReadPipesToTheirEnd: `grep -q` and head close a pipe before its end. Under
// pipefail the program before them then fails by SIGPIPE, now and then.
func TestScriptsReadPipesToTheirEnd(t *testing.T) {
	early := regexp.MustCompile(`\| *(grep -[a-zA-Z]*q|head)\b`)
	scripts, err := filepath.Glob(filepath.Join(moduleRoot(t), "test", "setup", "*.sh"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("%d scripts, %v", len(scripts), err)
	}
	for _, path := range scripts {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if found := early.FindString(line); found != "" {
				t.Errorf("%s:%d: %q closes its pipe early: have it read to the end", filepath.Base(path), i+1, found)
			}
		}
	}
}
