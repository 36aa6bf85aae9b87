// Package tail keeps the end of what a process or a guest has printed, for
// error messages.
//
// A Buffer may be written and read from any goroutine. It never grows past its
// size and never waits. What it gives out is safe to print: a guest's console is
// hostile input, and control sequences would reach an operator's terminal.
package tail

import (
	"errors"
	"io"
	"regexp"
	"strings"
	"sync"
	"unicode"
)

// Buffer is an io.Writer that remembers the last bytes written to it.
type Buffer struct {
	mu   sync.Mutex
	size int
	kept []byte // at most 2*size bytes, of which the last size count
}

// New makes a Buffer that remembers size bytes.
func New(size int) *Buffer { return &Buffer{size: size} }

// Write takes all of p; it never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(p)
	if len(p) > b.size {
		p = p[len(p)-b.size:]
	}
	b.kept = append(b.kept, p...)
	if len(b.kept) > 2*b.size { // moved once in size bytes, not on every write
		b.kept = append(b.kept[:0:0], b.kept[len(b.kept)-b.size:]...)
	}
	return n, nil
}

// ReadFrom remembers the end of what r has, until that ends. io.Copy and os/exec use
// it, whose own buffers of 32 KiB would wait for as long as a VM has nothing to say.
func (b *Buffer) ReadFrom(r io.Reader) (n int64, err error) {
	buf := make([]byte, 1<<10)
	for {
		m, err := r.Read(buf)
		_, _ = b.Write(buf[:m])
		n += int64(m)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// Lines returns at most the last n lines, without blank ones, printable. The
// first can be cut at its beginning.
func (b *Buffer) Lines(n int) string {
	b.mu.Lock()
	text := string(b.kept[max(0, len(b.kept)-b.size):])
	b.mu.Unlock()

	var lines []string
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if line = printable(line); strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// sequence is a control sequence of a terminal (ECMA-48, 5.4).
var sequence = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\x1b\[[0-?]*[ -/]*[@-~]`)
})

// printable drops what would move a cursor, change a colour or ring a bell.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, sequence().ReplaceAllString(line, ""))
}
