package k8s

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience is for what a VM must boot for, under emulation, on a busy machine.
const patience = 4 * time.Minute

// command is kubectl, as the administrator.
func (c *cluster) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.program("kubectl"), append([]string{"--kubeconfig=" + c.kubeconfig("admin")}, args...)...)
	cmd.Env = c.environment()
	cmd.Dir = c.dir
	return cmd
}

// run runs kubectl with a text for its standard input, and returns all it says.
func (c *cluster) run(t *testing.T, stdin string, args ...string) (string, error) {
	// It has limits of its own, and says then what it has waited for.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience+30*time.Second)
	defer cancel()
	cmd := c.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, &errs)
	}
	return out.String(), nil
}

// kubectl runs kubectl, which must succeed, and returns its output.
func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.run(t, "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies the objects of a file of testdata.
func (c *cluster) apply(t *testing.T, file string) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "apply", "--filename="+path)
}

// field is a value of an object, by a path of JSON.
func (c *cluster) field(t *testing.T, object, path string) string {
	t.Helper()
	return c.kubectl(t, "get", object, "--output=jsonpath="+path)
}

// sh runs a script in a container, which must succeed, and returns its output.
func (c *cluster) sh(t *testing.T, target, container, script string) string {
	t.Helper()
	return c.kubectl(t, "exec", target, "--container="+container, "--", "/bin/sh", "-c", script)
}

// until asks until done says so.
func (c *cluster) until(t *testing.T, what string, limit time.Duration, done func() (bool, string)) {
	t.Helper()
	began, last := time.Now(), ""
	if !c.poll(limit, nil, func() (ok bool) {
		ok, last = done()
		return ok
	}) {
		t.Fatalf("%s: not within %v; the last answer: %s", what, limit, last)
	}
	t.Logf("%s: after %v", what, time.Since(began).Round(100*time.Millisecond))
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
