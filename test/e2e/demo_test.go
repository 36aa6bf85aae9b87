package e2e

import (
	"bufio"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// TestTheDemoStopsWhatItStarted when Ctrl-C comes while its VM boots: the exit
// code says so, and neither a process nor the transient folder is left.
func TestTheDemoStopsWhatItStarted(t *testing.T) {
	bed := e2etest.Newest(t) // for its check of what is built
	program := bed.Tree.Build("bin", "demo")
	if err := harness.Need("build", program); err != nil {
		t.Fatal(err)
	}
	demo := exec.Command(program, "-image", "two", "sleep", "1000")
	output, err := demo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	dir, sandboxes := harness.Places(bed.Tree, "demo-"+bed.Release())
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	var seen []string
	for lines := bufio.NewScanner(output); lines.Scan(); {
		seen = append(seen, lines.Text())
		if strings.HasPrefix(lines.Text(), "$ ctr run") {
			if err := harness.WaitForEntry(ctx, sandboxes); err != nil {
				t.Error(err)
			}
			if err := demo.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = demo.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 130 {
		t.Errorf("the demo ended with %v, want code 130:\n%s", err, strings.Join(seen, "\n"))
	}
	if found, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(found) > 0 {
		t.Errorf("left behind: %q %v", found, err)
	}
	left, err := harness.Mentioning(dir + "/")
	if err != nil || len(left) > 0 {
		t.Errorf("processes left behind: %q %v", left, err)
	}
}
