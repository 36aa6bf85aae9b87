package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/conformance/place"
	"github.com/erofsvm/erofsvm/test/harness"
)

// benchmarked are the benchmarks of shimtest whose work is the same for every
// shim: lifecycle, startup by phases, execs and their streams.
var benchmarked = []string{
	"^BenchmarkRun$/^Lifecycle$", "^BenchmarkRun$/^StartupPhases$", "^BenchmarkExec$/^Exec$", "^BenchmarkExec$/^StdioRoundTrip$",
}

// benchmarkTimes is how often each is repeated, after once that does not count.
const benchmarkTimes = 3

// attempts is how often a benchmark may be begun. The container's process of the
// suite ends with the first signal that it gets, whichever it is
// (testbin/testbin.go, cmdForever), and Go's runtime sends it SIGURG when one of
// its goroutines has run for 10 ms, which it does on a machine that is busy.
const attempts = 3

// contender is a shim that is measured.
type contender struct {
	name  string
	env   []string
	place place.Place
}

// benchmarks runs the benchmarks of shimtest with the built shim, and with that
// of runc beside it, and reports both.
func (b *bench) benchmarks() error {
	folder := b.tree.Tool("runc", "bin")
	runc := filepath.Join(folder, "containerd-shim-runc-v2")
	if err := harness.Need("bench, or run test/setup/tools.sh runc", runc); err != nil {
		return err
	}
	s, err := b.buildShimtest()
	if err != nil {
		return err
	}
	contenders := []contender{
		{"runc", []string{"SHIM_BINARY=" + runc, "SHIM_MOUNTED=1", "PATH=" + folder + ":" + os.Getenv("PATH")},
			place.Place{Dir: b.tree.Build("conformance", "runc"), Dirs: []string{"/run", "/tmp"}}},
		{"a VM", s.env, s.place},
	}
	report := figures.Report{
		Title: "Benchmarks of shimtest",
		Host: fmt.Sprintf("%s, %d CPUs, each benchmark %d times, one shim after the other. Each figure is a mean. With runc the root filesystem is mounted beforehand.",
			shimtestModule, runtime.NumCPU(), benchmarkTimes),
	}
	times, rates := report.Table("time", "ms"), report.Table("rate", "MB/s")
	for _, c := range contenders {
		b.say("Benchmarks with %s", c.name)
		var found []figure
		for _, pattern := range benchmarked {
			more, err := b.benchmark(s, c, pattern)
			for again := 1; err != nil && again < attempts && b.ctx.Err() == nil; again++ {
				b.say("%s, once more: %v", pattern, err)
				more, err = b.benchmark(s, c, pattern)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			found = append(found, more...)
		}
		for _, f := range found {
			against := ""
			if c.name != contenders[0].name {
				against = f.name + ", " + contenders[0].name
			}
			table := times
			if f.rate {
				table = rates
			}
			table.Row(f.name+", "+c.name, against).Add(f.value)
		}
	}
	b.say("\n%s", report.Markdown())
	return report.Write(b.tree.Build("bench"), "shimtest")
}

// benchmark runs those of a pattern with one shim.
func (b *bench) benchmark(s suite, c contender, pattern string) ([]figure, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 6*time.Minute)
	defer cancel()
	cmd, err := c.place.Command(ctx, insideArg, "--", s.binary, "-test.run=^$", "-test.bench="+pattern,
		fmt.Sprintf("-test.benchtime=%dx", benchmarkTimes), "-test.timeout=5m")
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &out, io.Discard // the shim's own log
	cmd.Env = append(append(cmd.Env, s.env...), c.env...)
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w:\n%s", err, tail(strings.SplitAfter(out.String(), "\n"), 40))
	}
	return parseBenchmarks(out.String())
}

// figure is what one benchmark says of one thing.
type figure struct {
	name  string
	value float64 // milliseconds, or MB/s
	rate  bool
}

// processors is what package testing adds to the name of a benchmark.
var processors = regexp.MustCompile(`-\d+$`)

// parseBenchmarks reads what package testing prints: a name, the number of runs,
// and pairs of a value and its unit.
func parseBenchmarks(text string) ([]figure, error) {
	var found []figure
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 4 || !strings.HasPrefix(words[0], "Benchmark") {
			continue
		}
		name := processors.ReplaceAllString(strings.TrimPrefix(words[0], "Benchmark"), "")
		for pair := words[2:]; len(pair) >= 2; pair = pair[2:] {
			value, err := strconv.ParseFloat(pair[0], 64)
			if err != nil {
				return nil, fmt.Errorf("benchmark %s: %w", name, err)
			}
			switch kind, what, _ := strings.Cut(pair[1], "/"); {
			case pair[1] == "ns/op":
				found = append(found, figure{name: name, value: value / 1e6})
			case kind == "ms":
				found = append(found, figure{name: name + ", " + what, value: value})
			case pair[1] == "MB/s":
				found = append(found, figure{name: name, value: value, rate: true})
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no benchmark ran:\n" + text)
	}
	return found, nil
}
