package vm

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/fifo"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLogIsAwaitedLineByLine(t *testing.T) {
	v := &VM{lines: newLines()}
	v.lines.Write([]byte("one two\n"))
	v.lines.Write([]byte("two three\n"))
	if line, err := v.WaitLog(t.Context(), "three", "two"); err != nil || line != "two three" {
		t.Errorf("a line that is there: %q, %v", line, err)
	}
	time.AfterFunc(10*time.Millisecond, func() { v.lines.Write([]byte("four\n")) })
	if line, err := v.WaitLog(t.Context(), "four"); err != nil || line != "four" {
		t.Errorf("a line to come: %q, %v", line, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := v.WaitLog(ctx, "one", "three"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a line that never comes: %v", err)
	}
}

func TestOutputEndsWithItsWriterOrItsReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	var o output
	if err := o.read(path); err != nil {
		t.Fatal(err)
	}
	w, err := fifo.OpenFifo(t.Context(), path, unix.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("said")); err != nil {
		t.Error(err)
	}
	w.Close()
	select {
	case <-o.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the reader still waits after the writer has closed")
	}
	if got := o.String(); got != "said" {
		t.Errorf("read %q", got)
	}
	if err := o.close(); err != nil {
		t.Error(err)
	}

	var unused output
	if err := unused.read(filepath.Join(t.TempDir(), "fifo")); err != nil {
		t.Fatal(err)
	}
	if err := unused.close(); err != nil { // no writer ever came
		t.Error(err)
	}
}
