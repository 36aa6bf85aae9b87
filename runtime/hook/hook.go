// Package hook runs programs of the host that an OCI spec names as hooks.
//
// Run owns the process that it starts and everything the process starts in its
// group, until it returns. It may be called from any goroutine. The package
// looks at no spec: which hook runs when, and what its failure means, is for
// the caller.
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// maxOutput is how much of a hook's output an error shows, in bytes.
	maxOutput = 4 << 10
	// lastOutput is how long output is awaited whose writer is not the hook
	// any more.
	lastOutput = time.Second
)

// Run runs one hook with the state on its standard input, in the state's
// bundle, and waits for its end: until its own timeout, or else for at most
// deadline. The hook has the environment that the spec gives it, and no other.
// An error has the end of what it wrote.
func Run(ctx context.Context, h specs.Hook, state specs.State, deadline time.Duration) error {
	input, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("hook %s: state: %w", h.Path, err)
	}
	if h.Timeout != nil {
		deadline = time.Duration(*h.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	output := &tail{}
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args // argv as in execve(2), its first one included
	}
	cmd.Env = append([]string{}, h.Env...)
	cmd.Dir = state.Bundle
	cmd.Stdin = bytes.NewReader(input)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = lastOutput
	err = cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil // its output is held by a process that it has left behind
	case ctx.Err() != nil:
		return fmt.Errorf("hook %s: not finished within %s: %w%s", h.Path, deadline, ctx.Err(), output)
	}
	return fmt.Errorf("hook %s: %w%s", h.Path, err, output)
}

// tail keeps the last bytes that were written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if extra := len(t.kept) - maxOutput; extra > 0 {
		t.kept = append(t.kept[:0], t.kept[extra:]...)
	}
	return len(p), nil
}

// String is the output as the end of an error.
func (t *tail) String() string {
	if text := bytes.TrimSpace(t.kept); len(text) > 0 {
		return fmt.Sprintf(": %q", text)
	}
	return ""
}
