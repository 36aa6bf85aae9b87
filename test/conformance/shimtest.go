package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// shimtestModule is the suite, at the version that the module beside this
// program names.
const shimtestModule = "github.com/containerd/shimtest"

// stressTime is how long each of the stress tests runs. They end a minute before
// the time of their binary is over, which is the only way to tell them.
const stressTime = 2 * time.Minute

// buildShimtest builds the suite shimtest and makes its place.
func (b *bench) buildShimtest() (suite, error) {
	module := filepath.Join(b.tree.Root, "test", "conformance", "shimtest")
	binary, program := b.tree.Build("conformance", "shimtest.test"), b.tree.Build("conformance", "testbin")
	b.say("Building %s", shimtestModule)
	if _, err := b.goTool(module, "test", "-c", "-o", binary, "."); err != nil {
		return suite{}, err
	}
	if _, err := b.goTool(module, "build", "-trimpath", "-ldflags=-s -w", "-o", program, shimtestModule+"/cmd/testbin"); err != nil {
		return suite{}, err
	}
	sources, err := b.goTool(module, "list", "-m", "-f", "{{.Dir}}", shimtestModule)
	if err != nil {
		return suite{}, err
	}
	place, err := b.newPlace("shim")
	return suite{
		name: "shimtest", binary: binary, dir: module, place: place, sources: strings.TrimSpace(sources),
		env: []string{"SHIM_BINARY=" + b.tree.Shim(), "SHIMTEST_TESTBIN=" + program},
	}, err
}

// shimtest builds and runs the suite shimtest.
func (b *bench) shimtest() error {
	s, err := b.buildShimtest()
	if err != nil {
		return err
	}
	// A guest has one processor, and most hosts have two. Stress is not short.
	groups := [][]pass{{
		{run: "^Test(Run|OOM|Layers)$", timeout: 30 * time.Minute},
		{run: "^(Test(Exec|Transfer|UDS|Network)|Fuzz.*)$", timeout: 30 * time.Minute},
	}}
	if b.options.short {
		return b.judge(s, groups, true)
	}
	for name, before := range map[string]time.Duration{"Lifecycle": 0, "Exec": time.Minute, "Transfer": 3 * time.Minute} {
		groups = append(groups, []pass{{run: "^TestStress$/^" + name + "$", timeout: before + stressTime + time.Minute}})
	}
	return b.judge(s, groups, false)
}

// goTool runs the go command in a folder, and returns what it prints.
func (b *bench) goTool(dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(b.ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s in %s: %w\n%s", strings.Join(args, " "), dir, err, &errs)
	}
	return out.String(), nil
}
