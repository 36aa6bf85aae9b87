package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/fifo"
	"golang.org/x/sys/unix"
)

func TestLinesAreAwaitedOneByOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	c := &Container{ID: "c1"}
	if err := c.stdout.read(path); err != nil {
		t.Fatal(err)
	}
	w, err := fifo.OpenFifo(t.Context(), path, unix.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if _, err := w.Write([]byte(text)); err != nil {
			t.Error(err)
		}
	}
	write("one\ntwo\nhalf of ")
	for n, want := range []string{"one", "two"} {
		if line, err := c.WaitLine(t.Context(), n); err != nil || line != want {
			t.Errorf("line %d is %q, %v", n, line, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if line, err := c.WaitLine(ctx, 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("half a line: %q, %v", line, err)
	}
	time.AfterFunc(10*time.Millisecond, func() { write("three\n") })
	if line, err := c.WaitLine(t.Context(), 2); err != nil || line != "half of three" {
		t.Errorf("a line to come: %q, %v", line, err)
	}
	w.Close()
	if _, err := c.WaitLine(t.Context(), 3); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("a line that never comes: %v", err)
	}
	if err := c.stdout.close(); err != nil {
		t.Error(err)
	}
}

func TestWhatIsSaidIsALine(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := &Container{ID: "c1", stdin: w}
	if err := c.Say("hello"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	text := make([]byte, 16)
	if n, err := r.Read(text); err != nil || string(text[:n]) != "hello\n" {
		t.Errorf("%q, %v", text[:n], err)
	}
	if err := c.Say("hello"); err == nil {
		t.Error("what nobody can hear is taken for said")
	}
}
