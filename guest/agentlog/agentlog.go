// Package agentlog carries the agent's log to whoever connects for it.
//
// A Log is a bounded backlog of lines and the readers that follow it. Writing
// never waits for a reader: one that is too slow misses lines, and is told how
// many. It may be used from any goroutine. Serve owns the connections it
// accepts and their goroutines. Nothing is written to a disk.
package agentlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/erofsvm/erofsvm/guest/accept"
)

// Backlog is how many lines are kept, and maxLine how long one may be, in bytes.
const (
	Backlog = 1024
	maxLine = 8 << 10
)

// Log is an io.Writer that takes a line at a time, as slog's handlers do.
type Log struct {
	mu    sync.Mutex
	lines [][]byte
	first uint64        // number of lines[0]
	grown chan struct{} // closed when a line is added
}

// New returns an empty Log.
func New() *Log { return &Log{grown: make(chan struct{})} }

// Write adds a line; one that is too long is cut.
func (l *Log) Write(p []byte) (int, error) {
	line := bytes.Clone(p[:min(len(p), maxLine)])
	if !bytes.HasSuffix(line, []byte("\n")) {
		line = append(line, '\n')
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines = append(l.lines, line); len(l.lines) > Backlog {
		l.lines[0] = nil
		l.lines = l.lines[1:]
		l.first++
	}
	close(l.grown)
	l.grown = make(chan struct{})
	return len(p), nil
}

// after returns the lines from number next on, how many were lost before them,
// the number to go on with, and what is closed when there are more.
func (l *Log) after(next uint64) (lines [][]byte, lost, then uint64, grown <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if next < l.first {
		lost, next = l.first-next, l.first
	}
	lines = append(lines, l.lines[next-l.first:]...)
	return lines, lost, l.first + uint64(len(l.lines)), l.grown
}

// Follow writes the backlog and every line to come to w, until ctx ends or a
// write fails.
func (l *Log) Follow(ctx context.Context, w io.Writer) error {
	for next := uint64(0); ; {
		lines, lost, then, grown := l.after(next)
		if lost > 0 {
			lines = append([][]byte{fmt.Appendf(nil, "{\"level\":\"WARN\",\"msg\":\"lines of the log are lost\",\"lines\":%d}\n", lost)}, lines...)
		}
		if _, err := w.Write(bytes.Join(lines, nil)); err != nil {
			return err
		}
		next = then
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Serve lets everyone who connects to listener follow the log, until ctx ends.
// When it returns, its connections are closed and their goroutines gone.
func (l *Log) Serve(ctx context.Context, listener net.Listener) error {
	err := accept.Each(ctx, listener, func(ctx context.Context, conn net.Conn) {
		_ = l.Follow(ctx, conn) // a reader that went away is no error
	})
	if err != nil {
		return fmt.Errorf("accept a reader of the log: %w", err)
	}
	return nil
}

// Logger returns a logger into l, and for errors also to console.
func Logger(l *Log, console io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(both{
		slog.NewJSONHandler(l, &slog.HandlerOptions{Level: level}),
		slog.NewTextHandler(console, &slog.HandlerOptions{Level: slog.LevelError}),
	})
}

// both is a handler that hands records to two.
type both [2]slog.Handler

func (b both) Enabled(ctx context.Context, level slog.Level) bool {
	return b[0].Enabled(ctx, level) || b[1].Enabled(ctx, level)
}

func (b both) Handle(ctx context.Context, r slog.Record) error {
	var errs []error
	for _, h := range b {
		if h.Enabled(ctx, r.Level) {
			errs = append(errs, h.Handle(ctx, r.Clone()))
		}
	}
	return errors.Join(errs...)
}

func (b both) WithAttrs(attrs []slog.Attr) slog.Handler {
	return both{b[0].WithAttrs(attrs), b[1].WithAttrs(attrs)}
}

func (b both) WithGroup(name string) slog.Handler {
	return both{b[0].WithGroup(name), b[1].WithGroup(name)}
}
