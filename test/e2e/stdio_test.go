package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// TestTheLastByteComesBeforeTheExit: everything that a process wrote before it
// ended has arrived when the task can be deleted, to the last byte, however
// little time there was.
func TestTheLastByteComesBeforeTheExit(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	const lines = 100_000
	c, code := bed.Run(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c",
		fmt.Sprintf("seq 1 %d; seq 1 %d >&2; printf last; printf last >&2", lines, lines)}})
	if code != 0 {
		t.Fatalf("code %d: %.300s", code, c.Stderr)
	}
	var want strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintln(&want, i)
	}
	want.WriteString("last")
	for name, got := range map[string]string{"stdout": c.Stdout.String(), "stderr": c.Stderr.String()} {
		if got != want.String() {
			t.Errorf("%s: %d bytes of %d, ending in %q", name, len(got), want.Len(), got[max(0, len(got)-20):])
		}
	}
}

// TestStdinArrivesWholeAndEnds: two MiB that no text transformation would
// survive go in, and the end of the stream ends the reader.
func TestStdinArrivesWholeAndEnds(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	data := make([]byte, 2<<20)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(data); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	c, err := bed.Create(t, e2etest.Spec{Image: image, Args: []string{"sha256sum"}, Stdin: bytes.NewReader(data)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
	defer cancel()
	if err := c.Task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	// containerd's client keeps a writer open; CloseIO is how a client says
	// that there is no more. It must not overtake what is in the fifo.
	if err := c.Task.CloseIO(ctx, client.WithStdinCloser); err != nil {
		t.Fatal(err)
	}
	if code := c.WaitExit(t); code != 0 {
		t.Errorf("code %d: %s", code, c.Stderr)
	}
	c.Delete(t)
	if want := hex.EncodeToString(sum[:]); !strings.HasPrefix(c.Stdout.String(), want) {
		t.Errorf("sum of what arrived: %q, want %s", c.Stdout, want)
	}
}

// TestStdinIsInteractive: an answer comes while the stream stays open.
func TestStdinIsInteractive(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	r, w := io.Pipe()
	defer w.Close()
	c := bed.Start(t, e2etest.Spec{Image: image, Args: []string{"cat"}, Stdin: r})
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := io.WriteString(w, line); err != nil {
			t.Fatal(err)
		}
		c.Stdout.WaitFor(t, line)
	}
	c.Kill(t, syscall.SIGKILL)
	if code := c.WaitExit(t); code != 137 {
		t.Errorf("code %d, want 137", code)
	}
	c.Delete(t)
}
