package vm

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Say writes a line to the process's standard input.
func (c *Container) Say(line string) error {
	if _, err := fmt.Fprintln(c.stdin, line); err != nil {
		return fmt.Errorf("standard input of container %s: %w", c.ID, err)
	}
	return nil
}

// WaitLine waits until the process has written line n, counted from 0, to its
// standard output, and returns it.
func (c *Container) WaitLine(ctx context.Context, n int) (string, error) {
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		ended := false
		select {
		case <-c.stdout.ended:
			ended = true
		default:
		}
		// What stands behind the last end of a line is not a whole one.
		if lines := strings.Split(c.Stdout(), "\n"); n < len(lines)-1 {
			return lines[n], nil
		}
		if ended {
			return "", fmt.Errorf("line %d of container %s: its output has ended: %.500s", n, c.ID, c.stderr.String())
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return "", fmt.Errorf("line %d of container %s: %w", n, c.ID, ctx.Err())
		}
	}
}
