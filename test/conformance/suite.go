package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/erofsvm/erofsvm/test/conformance/place"
	"github.com/erofsvm/erofsvm/test/conformance/tally"
)

// suite is a built test binary, and where and how it runs.
type suite struct {
	name    string // as in skips.md
	binary  string
	dir     string // working directory
	env     []string
	args    []string // of the binary, besides those of package testing
	place   place.Place
	inside  []string // what is to be done in the place before: see inside
	sources string   // folder with the source of its subtests
}

// pass is one run of a suite's binary.
type pass struct {
	run     string // regexp of tests
	skip    string // regexp of those that another pass runs, "" for none
	timeout time.Duration
}

// judge runs the passes of a suite, says what is wrong, and ends with the line
// that counts. The passes of a group run at the same time, the groups one after
// the other. part says that they are not all of the suite.
func (b *bench) judge(s suite, groups [][]pass, part bool) error {
	if b.options.pattern != "" {
		groups, part = [][]pass{{{run: b.options.pattern, timeout: b.options.timeout}}}, true
	}
	old, err := filepath.Glob(b.logName(s, "-*.log"))
	for _, log := range old {
		err = errors.Join(err, os.Remove(log))
	}
	if err != nil {
		return err
	}
	emulated, err := b.emulated()
	if err != nil {
		return fmt.Errorf("ask QEMU for its accelerator: %w", err)
	}
	list := b.lists[s.name].On(emulated)
	begun := time.Now()
	all := tally.New()
	for _, passes := range groups {
		tallies := make([]*tally.Tally, len(passes))
		var lanes errgroup.Group
		for i, p := range passes {
			tallies[i] = tally.New()
			lanes.Go(func() error { return b.pass(s, i, p, list, tallies[i]) })
		}
		err = lanes.Wait()
		for _, t := range tallies {
			all.Add(t)
		}
		if err != nil {
			b.explain(all)
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	known, err := b.names(s)
	if err != nil {
		return err
	}
	v := all.Judge(list, known, part)
	b.explain(all)
	for _, wrong := range v.Wrong {
		b.say("%s: %s", s.name, wrong)
	}
	if len(v.Wrong) > 0 {
		b.say("%s: all output is in %s*.log", s.name, b.logName(s, ""))
	}
	b.say("%s: %s in %s", s.name, v, time.Since(begun).Round(time.Second))
	if len(v.Wrong) > 0 || v.Passed == 0 {
		return fmt.Errorf("%s: %w", s.name, errVerdict)
	}
	return nil
}

func (b *bench) logName(s suite, pass string) string {
	return b.tree.Build("conformance", strings.ReplaceAll(s.name, " ", "-")+pass)
}

// pass runs the binary once, in a place of its own. That tests failed is no error
// of it.
func (b *bench) pass(s suite, lane int, p pass, list tally.List, t *tally.Tally) error {
	// What does not end by itself, and says why, is ended a little later.
	ctx, cancel := context.WithTimeout(b.ctx, p.timeout+time.Minute)
	defer cancel()
	args := append([]string{insideArg}, s.inside...)
	args = append(args, "--", s.binary, "-test.v=test2json", "-test.paniconexit0", "-test.parallel=1",
		"-test.timeout="+p.timeout.String(), "-test.run="+p.run, "-test.skip="+either(p.skip, list.Pattern()))
	args = append(args, s.args...)
	place := s.place
	place.Dir = fmt.Sprintf("%s-%d", place.Dir, lane)
	tests, err := place.Command(ctx, args...)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(b.logName(s, fmt.Sprintf("-%d.log", lane)), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	reader, writer := io.Pipe()
	output := io.MultiWriter(log, writer)
	tests.Dir, tests.Stdout, tests.Stderr = s.dir, output, output
	tests.Env = append(tests.Env, s.env...)
	events := exec.CommandContext(ctx, "go", "tool", "test2json", "-t")
	events.Stdin, events.Stderr = reader, os.Stderr
	stream, err := events.StdoutPipe()
	if err != nil {
		return err
	}
	if err := events.Start(); err != nil {
		return fmt.Errorf("test2json: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		err := tests.Run()
		writer.Close()
		ended <- err
	}()
	read := t.Read(stream, b.progress)
	if read != nil {
		cancel()
		reader.CloseWithError(read)
	}
	err = <-ended
	if _, failed := errors.AsType[*exec.ExitError](err); failed && ctx.Err() == nil {
		err = nil // the tests say so themselves
	}
	return errors.Join(read, events.Wait(), err, b.ctx.Err())
}

// either is a regexp for what one of two matches, of which each may be "".
func either(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "|" + b
}

// say prints a line. Passes that run at the same time share the output.
func (b *bench) say(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintf(b.out, format+"\n", args...)
}

// progress shows a test that has ended.
func (b *bench) progress(t *tally.Test) {
	b.say("  %-7s %6.1f s  %s", t.Outcome, t.Took.Seconds(), t.Name)
}

// explain shows what the tests printed that failed, or what was printed outside
// of tests if none has run.
func (b *bench) explain(t *tally.Tally) {
	counted := t.Counted()
	for _, test := range counted {
		if test.Outcome == tally.Failed || test.Outcome == tally.Unfinished {
			output := slices.DeleteFunc(slices.Clone(test.Output), chatter)
			b.say("\n%s %s:\n%s", test.Name, test.Outcome, tail(output, 40))
		}
	}
	if len(counted) == 0 {
		b.say("\nno test ran:\n%s", tail(t.Loose(), 60))
	}
}

// chatter is a line that the client of containerd or the shim writes at every
// step. The log has it.
func chatter(line string) bool {
	return strings.Contains(line, "level=debug") || strings.Contains(line, "level=info")
}

func tail(lines []string, n int) string {
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// names knows which tests a suite has: tests by asking the binary, subtests by
// looking for their name in the source, since nothing else lists them.
func (b *bench) names(s suite) (func(string) bool, error) {
	out, err := exec.CommandContext(b.ctx, s.binary, "-test.list=.", "-test.short").Output() // short: no daemon is started for it
	if err != nil {
		return nil, fmt.Errorf("list the tests of %s: %w", s.name, err)
	}
	top := map[string]bool{}
	for name := range strings.Lines(string(out)) {
		top[strings.TrimSpace(name)] = true
	}
	files, err := filepath.Glob(filepath.Join(s.sources, "*.go"))
	if err != nil {
		return nil, err
	}
	var source strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		source.Write(text)
	}
	return func(name string) bool {
		parts := strings.Split(name, "/")
		for _, part := range parts[1:] {
			// package testing writes spaces as underscores.
			if !strings.Contains(source.String(), fmt.Sprintf("%q", strings.ReplaceAll(part, "_", " "))) {
				return false
			}
		}
		return top[parts[0]]
	}, nil
}
