package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMain makes this test's program stand for the command.
func TestMain(m *testing.M) {
	if os.Getenv("EROFSVM_TEST_RUN_MAIN") == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

func run(t *testing.T, stdin string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "EROFSVM_TEST_RUN_MAIN=1", "HOME="+t.TempDir())
	cmd.Stdin = strings.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

// TestARefusalIsStatus1AndOneLine also has errors of the command line.
func TestARefusalIsStatus1AndOneLine(t *testing.T) {
	for name, c := range map[string]struct {
		stdin string
		args  []string
		says  string
	}{
		"host-mounted":    {`[{"type":"bind","source":"/a","options":["rbind"]}]`, []string{"plan"}, "erofs snapshotter"},
		"not a list":      {`{`, []string{"plan"}, "mount list"},
		"unknown flag":    {``, []string{"plan", "--nothing"}, "--nothing"},
		"unknown command": {``, []string{"plot"}, "plot"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, status := run(t, c.stdin, c.args...)
			if status != 1 || stdout != "" {
				t.Errorf("status %d and %q on standard output, want 1 and nothing", status, stdout)
			}
			if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "erofsvm: ") || !strings.Contains(stderr, c.says) {
				t.Errorf("says %q, want one line with %q", stderr, c.says)
			}
		})
	}
}
