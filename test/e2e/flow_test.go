package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// The numbers of seven digits from first to last, a line each, are more than
// everything between a process and its reader holds together: two pipes, the
// sockets' buffers, and the guest's memory for packets.
const first, last = 1_000_000, 1_399_999

// TestOutputWaitsForItsReader is about readers of an exec's output that are slow,
// gone, or come back: what is written waits for them, in the process, and
// nobody else does.
func TestOutputWaitsForItsReader(t *testing.T) {
	bed := e2etest.Newest(t)
	config := filepath.Join(t.TempDir(), "shim.toml")
	if err := bed.ShimConfig().Set("deadlines", "drain", "4s").Write(config); err != nil { // less to wait for than 10
		t.Fatal(err)
	}
	c := bed.Start(t, e2etest.Spec{Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sleep", "1000"}, Config: config})
	numbers := []string{"seq", strconv.Itoa(first), strconv.Itoa(last)}
	var want bytes.Buffer
	for i := first; i <= last; i++ {
		fmt.Fprintln(&want, i)
	}

	t.Run("slow", func(t *testing.T) {
		r := startReader(t, bed, c, numbers...)
		r.expect(t, want.Bytes()[:1])
		pause(t, c)
		r.expect(t, want.Bytes()[1:])
		r.end(t, bed, 0)
	})
	t.Run("gone and back", func(t *testing.T) {
		r := startReader(t, bed, c, numbers...)
		const before = 100_000
		r.expect(t, want.Bytes()[:before])
		r.file.Close()
		pause(t, c)
		r.open(t)
		r.expect(t, want.Bytes()[before:])
		r.end(t, bed, 0)
	})
	t.Run("gone", func(t *testing.T) {
		r := startReader(t, bed, c, numbers...)
		r.expect(t, want.Bytes()[:1])
		r.file.Close()
		pause(t, c)
		ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
		defer cancel()
		if err := r.process.Kill(ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.end(t, bed, 137)
	})
}

// pause lasts until a few other execs have come and gone, which so do not wait for
// anybody's reader. Everything on the way is full by then.
func pause(t *testing.T, c *e2etest.Container) {
	t.Helper()
	for range 3 {
		if _, errs, code := c.RunExec(t, "true"); code != 0 {
			t.Errorf("code %d: %s", code, errs)
		}
	}
}

// reader is an exec whose output goes into a fifo that the test reads itself, as
// slowly as it likes.
type reader struct {
	process client.Process
	exit    <-chan client.ExitStatus
	path    string
	file    *os.File
}

func startReader(t *testing.T, bed *e2etest.Bed, c *e2etest.Container, args ...string) *reader {
	t.Helper()
	r := &reader{path: filepath.Join(t.TempDir(), "out")}
	if err := syscall.Mkfifo(r.path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	t.Cleanup(cancel)
	ctx = bed.Context(ctx)
	var err error
	r.process, err = c.Task.Exec(ctx, filepath.Base(t.Name()), c.Process(t, args...), func(id string) (cio.IO, error) {
		return onlyPaths{cio.Config{Stdout: r.path}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.process.Delete(ctx, client.WithProcessKill) })
	if r.exit, err = r.process.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	r.open(t)
	if err := r.process.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return r
}

// onlyPaths are streams that the client of containerd leaves alone.
type onlyPaths struct{ config cio.Config }

func (p onlyPaths) Config() cio.Config { return p.config }
func (onlyPaths) Cancel()              {}
func (onlyPaths) Wait()                {}
func (onlyPaths) Close() error         { return nil }

// open begins to read, and does not wait for a writer.
func (r *reader) open(t *testing.T) {
	t.Helper()
	var err error
	if r.file, err = os.OpenFile(r.path, os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil {
		t.Fatal(err)
	}
	file := r.file
	t.Cleanup(func() { file.Close() })
}

// expect reads as much as there is in want, and compares.
func (r *reader) expect(t *testing.T, want []byte) {
	t.Helper()
	// A fifo that nobody has opened for writing yet reads as ended, but has no
	// event (fifo(7), and pipe_poll of the kernel's fs/pipe.c).
	raw, err := r.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(e2etest.Step/time.Millisecond)); err != nil || n != 1 {
			t.Errorf("no output: %d, %v", n, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.file.SetReadDeadline(time.Now().Add(e2etest.Boot)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r.file, got); err != nil {
		t.Fatalf("after %d bytes of %d: %v", n, len(got), err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Errorf("of %d bytes those from %d on are others: %.40q, want %.40q", len(got), i, got[i:], want[i:])
	}
}

// end expects the end of the process, of the stream, and of the exec.
func (r *reader) end(t *testing.T, bed *e2etest.Bed, want uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
	defer cancel()
	select {
	case status := <-r.exit:
		if code, _, err := status.Result(); err != nil || code != want {
			t.Errorf("code %d, want %d, %v", code, want, err)
		}
	case <-ctx.Done():
		t.Fatal("the process does not end")
	}
	if _, err := r.process.Delete(ctx); err != nil {
		t.Error(err)
	}
}

// TestNothingGrowsWithWhatGoesThroughAStream: the shim and the daemon behind the
// vsock keep nothing of an output.
func TestNothingGrowsWithWhatGoesThroughAStream(t *testing.T) {
	bed := e2etest.Newest(t)
	c := bed.Start(t, e2etest.Spec{Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"sleep", "1000"}})
	const size = 256 << 20
	flow := func(size int) {
		t.Helper()
		var count counter
		e, err := c.Exec(t, nil, c.Process(t, "dd", "if=/dev/zero", "bs=64k", "count="+strconv.Itoa(size>>16)),
			cio.WithStreams(nil, &count, io.Discard))
		if err != nil {
			t.Fatal(err)
		}
		if code := e.WaitExit(t); code != 0 {
			t.Errorf("code %d", code)
		}
		ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
		defer cancel()
		if _, err := e.Process.Delete(ctx); err != nil { // which waits for the stream
			t.Error(err)
		}
		e.Adopt(nil)
		if int(count) != size {
			t.Errorf("%d bytes of %d have arrived", count, size)
		}
	}
	flow(8 << 20) // buffers and pools fill
	before := resident(t, bed)
	flow(size)
	for name, after := range resident(t, bed) {
		t.Logf("%s: %d KiB, then %d KiB", name, before[name], after)
		if grown := after - before[name]; grown > 4<<10 {
			t.Errorf("%s has grown by %d KiB with %d MiB of output", name, grown, size>>20)
		}
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// resident is the memory, in KiB, of the processes that an output goes through.
func resident(t *testing.T, bed *e2etest.Bed) map[string]int {
	t.Helper()
	sizes := map[string]int{}
	for name, find := range map[string]func() ([]int, error){"shim": bed.Shims, "vsock daemon": bed.VsockDaemons} {
		pids, err := find()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				t.Fatal(err)
			}
			for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
				// Without pages of files, which come and go (proc(5)).
				if words := strings.Fields(lines.Text()); len(words) > 1 && words[0] == "RssAnon:" {
					kib, err := strconv.Atoi(words[1])
					if err != nil {
						t.Fatal(err)
					}
					sizes[name] += kib
				}
			}
		}
	}
	if sizes["shim"] == 0 {
		t.Fatal("there is no shim to look at")
	}
	return sizes
}
