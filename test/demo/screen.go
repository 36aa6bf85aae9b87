package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// screen writes the demo's lines. On a terminal the time of a running step is
// counted up in place; elsewhere a line appears when its step is done.
type screen struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
}

func newScreen(f *os.File) *screen {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &screen{w: f, terminal: err == nil}
}

func (s *screen) printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.w, format, args...)
}

func (s *screen) heading(text string) { s.printf("\n%s\n", text) }

// step runs one step and shows its name and how long it took.
func (s *screen) step(ctx context.Context, name string, do func() error) error {
	begun := time.Now()
	done := make(chan struct{})
	var shown sync.WaitGroup
	if s.terminal {
		shown.Go(func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				s.printf("\r  %-52s %5.0f s", name, time.Since(begun).Seconds())
				select {
				case <-tick.C:
				case <-done:
					return
				case <-ctx.Done():
					return
				}
			}
		})
	}
	err := do()
	close(done)
	shown.Wait()
	start := ""
	if s.terminal {
		start = "\r"
	}
	result := ""
	if err != nil {
		result = "  failed"
	}
	s.printf("%s  %-52s %5.1f s%s\n", start, name, time.Since(begun).Seconds(), result)
	return err
}

// indented is a writer that puts a prefix before every line.
func (s *screen) indented(prefix string) *lineWriter { return &lineWriter{screen: s, prefix: prefix} }

// lineWriter passes whole lines on. Two streams may share one.
type lineWriter struct {
	screen  *screen
	prefix  string
	mu      sync.Mutex
	partial []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.partial = append(w.partial, p...)
	for {
		line, rest, found := bytes.Cut(w.partial, []byte("\n"))
		if !found {
			return len(p), nil
		}
		w.screen.printf("%s%s\n", w.prefix, line)
		w.partial = rest
	}
}

// flush writes a last line without an end.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.partial) > 0 {
		w.screen.printf("%s%s\n", w.prefix, w.partial)
		w.partial = nil
	}
}
