package tool_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/rootfs/internal/tool"
)

// TestMain makes this test's program stand for a process that runs a tool.
func TestMain(m *testing.M) {
	if script := os.Getenv("EROFSVM_TEST_RUN_TOOL"); script != "" {
		_, err := tool.Run(context.Background(), "/bin/sh", nil, nil, "-c", script)
		fmt.Println(err)
		return
	}
	os.Exit(m.Run())
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestAToolGetsItsFilesAndNothingElse(t *testing.T) {
	t.Setenv("SECRET", "secret")
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := tool.Run(deadline(t), "/bin/sh", []*os.File{f}, nil, "-c", `echo "$SECRET"; echo of the tool >`+tool.Inherited(0)+`; readlink /proc/$$/fd/* | grep -c `+path+`$`)
	if err != nil || string(out) != "\n1\n" {
		t.Errorf("%q, %v, want no environment and the file once", out, err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "of the tool\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAFailureSaysWhatTheToolSaid(t *testing.T) {
	script := `yes long | head -c 100000 >&2; echo "cannot read /proc/self/fd/4 and /proc/self/fd/5" >&2; exit 7`
	_, err := tool.Run(deadline(t), "/bin/sh", nil, map[string]string{tool.Inherited(1): "/s/layer"}, "-c", script)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Fatalf("%v, want status 7", err)
	}
	if said := err.Error(); !strings.Contains(said, "/bin/sh") || !strings.HasSuffix(said, "cannot read /s/layer and /proc/self/fd/5") || len(said) > 4000 {
		t.Errorf("says %d bytes, %.100s ... %s", len(said), said, said[len(said)-60:])
	}
	if _, err := tool.Run(deadline(t), "/nonexistent", nil, nil); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("%v, want %v", err, os.ErrNotExist)
	}
}

// TestTheContextEndsTheTool has a child of the tool that keeps its output open.
func TestTheContextEndsTheTool(t *testing.T) {
	cause := errors.New("took too long")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, cause)
	defer cancel()
	begun := time.Now()
	_, err := tool.Run(ctx, "/bin/sh", nil, nil, "-c", "sleep 60 & sleep 60")
	if !errors.Is(err, cause) || time.Since(begun) > 30*time.Second {
		t.Errorf("%v after %v, want %v", err, time.Since(begun), cause)
	}
}

// TestAToolDiesWithItsCaller kills a process that runs one.
func TestAToolDiesWithItsCaller(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	const limit = 30 * time.Second
	if err := fifo.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	caller := exec.CommandContext(deadline(t), os.Args[0])
	caller.Env = append(os.Environ(), "EROFSVM_TEST_RUN_TOOL=echo $$ >"+path+"; exec sleep 300")
	if err := caller.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanln(fifo, &pid); err != nil {
		t.Fatalf("the tool does not start: %v", err)
	}
	tool, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tool)
	if err := caller.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = caller.Wait()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(tool), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	if n != 1 || err != nil {
		t.Errorf("%d, %v: the tool lives on", n, err)
	}
}

// TestAToolMayOpenAsManyFilesAsThisProcess has more of them than Go's own limit
// for children; the tool waits until it may.
func TestAToolMayOpenAsManyFilesAsThisProcess(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	args := []string{"-c", fmt.Sprintf("until [ $(ulimit -n) = %d ]; do :; done", limit.Max)}
	if _, err := tool.Run(deadline(t), "/bin/sh", nil, nil, append(args, make([]string, 600)...)...); err != nil {
		t.Error(err)
	}
}

func TestFindSaysWhichToolItIs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "mkfs.test")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	byName, err := tool.Find("mkfs.test")
	if err != nil {
		t.Fatal(err)
	}
	byPath, err := tool.Find(path)
	if err != nil || byName != byPath || byName.Path != path {
		t.Errorf("%+v and %+v, %v", byName, byPath, err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if other, err := tool.Find(path); err != nil || other == byPath {
		t.Errorf("%+v, %v, want another state", other, err)
	}
	for _, name := range []string{"mkfs.none", dir, "/etc/passwd", ""} {
		if _, err := tool.Find(name); err == nil {
			t.Errorf("%q is taken for a tool", name)
		}
	}
}
