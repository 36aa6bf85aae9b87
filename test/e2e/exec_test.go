package e2e

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// TestExecUnderEveryRelease: what a person types, beside a container that runs.
func TestExecUnderEveryRelease(t *testing.T) {
	for _, release := range harness.Releases {
		t.Run(release, func(t *testing.T) {
			bed := e2etest.Release(t, release)
			c := bed.Start(t, e2etest.Spec{Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sleep", "1000"}})
			ctx, cancel := context.WithTimeout(t.Context(), e2etest.Step)
			defer cancel()
			cmd := bed.Ctr(ctx, "task", "exec", "--exec-id", "e1", c.ID, "sh", "-c", "cat; echo to stderr >&2; exit 7")
			var stdout, stderr strings.Builder
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("said\n"), &stdout, &stderr
			err := cmd.Run()
			if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 7 {
				t.Errorf("%v, want exit code 7", err)
			}
			if stdout.String() != "said\n" || !strings.Contains(stderr.String(), "to stderr") {
				t.Errorf("stdout %q, stderr %q", &stdout, &stderr)
			}
		})
	}
}

// TestExecs is about the processes that can be beside a container's own; they
// share one.
func TestExecs(t *testing.T) {
	bed := e2etest.Newest(t)
	c := bed.Start(t, e2etest.Spec{Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sleep", "1000"}})

	t.Run("identity", func(t *testing.T) {
		p := c.Process(t, "sh", "-c", `id -u; id -g; id -G; pwd; echo "$HELLO"; ulimit -n; grep -E "NoNewPrivs|CapEff" /proc/self/status`)
		p.User = specs.User{UID: 1234, GID: 55, AdditionalGids: []uint32{55, 66, 77}}
		p.Cwd, p.Env, p.NoNewPrivileges = "/tmp", append(p.Env, "HELLO=two words"), true
		p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 321, Soft: 123}}
		p.Capabilities = &specs.LinuxCapabilities{}
		p.ApparmorProfile = "some-profile-of-the-host"
		e, err := c.Exec(t, nil, p)
		if err != nil {
			t.Fatal(err)
		}
		if code := e.WaitExit(t); code != 0 {
			t.Errorf("code %d: %s", code, e.Stderr)
		}
		want := "1234\n55\n55 66 77\n/tmp\ntwo words\n123\n"
		got := e.Stdout.String()
		if !strings.HasPrefix(got, want) || !strings.Contains(got, "NoNewPrivs:\t1") || !strings.Contains(got, "CapEff:\t0000000000000000") {
			t.Errorf("it says\n%swant\n%sno capabilities, and no new privileges", got, want)
		}
	})

	for _, failure := range []struct {
		name   string
		change func(*specs.Process)
		want   string
	}{
		{"no such command", func(p *specs.Process) { p.Args = []string{"nosuchcommand"} }, `exec: "nosuchcommand": executable file not found in $PATH`},
		{"no such path", func(p *specs.Process) { p.Args = []string{"/no/such/command"} }, "/no/such/command: no such file or directory"},
		{"not executable", func(p *specs.Process) { p.Args = []string{"/etc/image"} }, "permission denied"},
		{"no such user", func(p *specs.Process) { p.Args, p.User.UID = []string{"true"}, math.MaxUint32 }, "unable to setup user"},
		{"no such directory", func(p *specs.Process) { p.Args, p.Cwd = []string{"true"}, "/no/such/dir" }, "/no/such/dir"},
	} {
		t.Run(failure.name, func(t *testing.T) {
			p := c.Process(t)
			failure.change(p)
			if _, err := c.Exec(t, nil, p); err == nil || !strings.Contains(err.Error(), failure.want) {
				t.Errorf("start: %v, want %q in it", err, failure.want)
			}
		})
	}

	t.Run("terminal", func(t *testing.T) {
		p := c.Process(t, "stty", "size")
		p.Terminal, p.ConsoleSize = true, &specs.Box{Height: 33, Width: 77}
		e, err := c.Exec(t, nil, p, cio.WithTerminal)
		if err != nil {
			t.Fatal(err)
		}
		if code := e.WaitExit(t); code != 0 || strings.TrimSpace(e.Stdout.String()) != "33 77" {
			t.Errorf("code %d, size %q from the first byte on, want 33 77", code, e.Stdout)
		}
	})

	t.Run("resize", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		p := c.Process(t, "sh", "-c", "echo up; read line; stty size")
		p.Terminal = true
		e, err := c.Exec(t, r, p, cio.WithTerminal)
		if err != nil {
			t.Fatal(err)
		}
		e.Stdout.WaitFor(t, "up")
		ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
		defer cancel()
		if err := e.Process.Resize(ctx, 99, 44); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(w)
		e.Stdout.WaitFor(t, "44 99")
		e.WaitExit(t)
	})

	t.Run("signals", func(t *testing.T) {
		p := c.Process(t, "sh", "-c", "trap 'echo caught; exit 3' TERM; echo up; while true; do sleep 0.1; done")
		e, err := c.Exec(t, nil, p)
		if err != nil {
			t.Fatal(err)
		}
		e.Stdout.WaitFor(t, "up")
		ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
		defer cancel()
		if err := e.Process.Kill(ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := e.WaitExit(t); code != 3 || !strings.Contains(e.Stdout.String(), "caught") {
			t.Errorf("code %d, %q", code, e.Stdout)
		}
	})

	t.Run("pids name the execs", func(t *testing.T) {
		e, err := c.Exec(t, nil, c.Process(t, "sleep", "1000"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), e2etest.Step)
		defer cancel()
		out, err := bed.Ctr(ctx, "task", "ps", c.ID).CombinedOutput()
		if err != nil || !strings.Contains(string(out), e.Process.ID()) {
			t.Errorf("%v, ctr task ps does not name %s:\n%s", err, e.Process.ID(), out)
		}
	})

	t.Run("many", func(t *testing.T) {
		for i := range 30 {
			if out, _, code := c.RunExec(t, "echo", fmt.Sprint(i)); code != 0 || out != fmt.Sprintln(i) {
				t.Fatalf("exec %d: code %d, %q", i, code, out)
			}
		}
	})
}

// TestEventsOfAnExec come once and in containerd's order.
func TestEventsOfAnExec(t *testing.T) {
	bed := e2etest.Newest(t)
	all := bed.Events(t, "")
	c := bed.Start(t, e2etest.Spec{Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sleep", "1000"}})
	if _, _, code := c.RunExec(t, "true"); code != 0 {
		t.Errorf("code %d", code)
	}
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
	defer cancel()
	if err := c.Task.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Task.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	c.Kill(t, syscall.SIGKILL)
	c.WaitExit(t)
	c.Delete(t)
	want := []string{
		"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit",
		"/tasks/paused", "/tasks/resumed", "/tasks/exit", "/tasks/delete",
	}
	if got := all.Of(t, c.ID); !slices.Equal(got, want) {
		t.Errorf("events\n%q, want\n%q", got, want)
	}
}
