package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// detached is `ctr run --detach` with the shim, up to where the flags go.
func detached(bed *e2etest.Bed, more ...string) []string {
	return append([]string{"run", "--detach", "--runtime", harness.Runtime,
		"--runtime-config-path", bed.ShimConfigPath(), "--snapshotter", harness.Snapshotter}, more...)
}

// removeAll removes what a test leaves that fails.
func removeAll(t *testing.T, bed *e2etest.Bed) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), e2etest.Step)
		defer cancel()
		if err := bed.RemoveContainers(ctx); err != nil {
			t.Error(err)
		}
	})
}

// TestTasksInTheHandsOfAPerson: a container in the background, and what ctr can do
// with its task.
func TestTasksInTheHandsOfAPerson(t *testing.T) {
	bed := e2etest.Newest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*e2etest.Boot)
	defer cancel()
	removeAll(t, bed)
	ctr := func(want string, args ...string) {
		t.Helper()
		out, err := bed.Ctr(ctx, args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("ctr %s: %v, want %q in\n%s", strings.Join(args, " "), err, want, out)
		}
	}
	ctr("", detached(bed, bed.Image(t, "one", harness.Snapshotter), "background", "sh", "-c",
		"trap 'echo got it; exit 4' USR1; echo up; while true; do sleep 0.2; done")...)
	ctr("RUNNING", "task", "ls")
	ctr("PID", "task", "ps", "background")
	ctr("memory", "task", "metrics", "background")
	ctr("Linux", "task", "exec", "--exec-id", "one", "background", "uname")
	ctr("", "task", "pause", "background")
	ctr("PAUSED", "task", "ls")
	ctr("", "task", "resume", "background")
	ctr("RUNNING", "task", "ls")

	// What was said before there was anybody to hear it has waited.
	var said e2etest.Buffer
	attach := bed.Ctr(ctx, "task", "attach", "background")
	attach.Stdout, attach.Stderr = &said, &said
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	said.WaitFor(t, "up")
	ctr("", "task", "kill", "--signal", "SIGUSR1", "background")
	err := attach.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 4 || !strings.Contains(said.String(), "got it") {
		t.Errorf("ctr task attach: %v, want 4, and it says %q", err, &said)
	}
	ctr("", "container", "rm", "background") // attach has removed the task
}

// TestATerminalIsAsLargeAsThePersons, at the start and when it changes.
func TestATerminalIsAsLargeAsThePersons(t *testing.T) {
	bed := e2etest.Newest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*e2etest.Boot)
	defer cancel()
	removeAll(t, bed)
	master, slave := openPty(t)
	resize(t, master, 40, 100)
	awaits := func(size, say string) string {
		return fmt.Sprintf(`until [ "$(stty size)" = %q ]; do sleep 0.1; done; echo %s; `, size, say)
	}
	cmd := bed.Ctr(ctx, "run", "--rm", "--tty", "--runtime", harness.Runtime, "--runtime-config-path", bed.ShimConfigPath(),
		"--snapshotter", harness.Snapshotter, bed.Image(t, "one", harness.Snapshotter), "terminal", "sh", "-c",
		awaits("40 100", "as it was")+awaits("50 120", "as it is")+"read line; echo read $line; exit 6")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	var seen e2etest.Buffer
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for buf := make([]byte, 1024); ; {
			n, err := master.Read(buf)
			_, _ = seen.Write(buf[:n])
			if err != nil {
				return // EIO, when nobody has the other end any more
			}
		}
	}()
	seen.WaitForWithin(t, "as it was", e2etest.Boot)
	resize(t, master, 50, 120)
	seen.WaitFor(t, "as it is")
	if _, err := master.WriteString("words\r"); err != nil {
		t.Error(err)
	}
	err := cmd.Wait()
	<-drained
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 6 {
		t.Errorf("ctr run --tty: %v, want 6", err)
	}
	if !strings.Contains(seen.String(), "read words") {
		t.Errorf("on the terminal:\n%s", &seen)
	}
}

// openPty opens a terminal, as posix_openpt(3) and its companions do.
func openPty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

func resize(t *testing.T, terminal *os.File, rows, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

// sortedLines are the lines of what two streams have written to one file: they come by
// two ways, and which of two lines comes first is nobody's promise.
func sortedLines(text string) []string {
	return slices.Sorted(strings.Lines(text))
}

// TestOutputGoesWhereItsURISays, and nowhere without one.
func TestOutputGoesWhereItsURISays(t *testing.T) {
	bed := e2etest.Newest(t)
	dir := t.TempDir()
	logger := filepath.Join(dir, "logger")
	// The contract of containerd's core/runtime/v2/logging: outputs at 3 and 4, and
	// 5 is closed by who is ready.
	script := "#!/bin/sh\nexec 5>&-\ncat <&3 > \"$1.out\" &\ncat <&4 > \"$1.err\"\nwait\n"
	if err := os.WriteFile(logger, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	file, program := filepath.Join(dir, "file"), filepath.Join(dir, "program")
	for _, c := range []struct {
		name string
		flag []string
		want map[string]string // files
	}{
		{"a file", []string{"--log-uri", "file://" + file}, map[string]string{file: "to stdout\nto stderr\n"}},
		{"a program", []string{"--log-uri", "binary://" + logger + "?" + program}, map[string]string{program + ".out": "to stdout\n", program + ".err": "to stderr\n"}},
		{"nowhere", []string{"--null-io"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(c.flag, bed.Image(t, "one", harness.Snapshotter), "logs", "sh", "-c", "echo to stdout; echo to stderr >&2; exit 3")
			stdout, stderr, code := bed.CtrRun(t, nil, args...)
			if code != 3 || stdout != "" || strings.Contains(stderr, "to stderr") {
				t.Errorf("code %d, want 3, stdout %q, stderr %q", code, stdout, stderr)
			}
			for path, want := range c.want {
				got, err := os.ReadFile(path)
				if err != nil || !slices.Equal(sortedLines(string(got)), sortedLines(want)) {
					t.Errorf("%s: %q, %v, want %q", path, got, err, want)
				}
			}
		})
	}
}
