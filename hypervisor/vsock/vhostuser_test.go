package vsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T) (*vhostUserDevice, string) {
	t.Helper()
	dir := shortDir(t)
	d, err := Open(within(t), Config{Kind: VhostUser, Daemon: testguest.Find(t).VsockDaemon, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(within(t)); err != nil {
			t.Error(err)
		}
	})
	return d.(*vhostUserDevice), dir
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) > 0 {
		t.Errorf("%s is left", entries[0].Name())
	}
}

func TestCloseLeavesNothingAndIsIdempotent(t *testing.T) {
	d, dir := open(t)
	if w := d.Wiring(); w.Kind != VhostUser || w.CID != guestCID || w.File == nil || !w.SharedMemory {
		t.Errorf("wiring is %+v", w)
	}
	d.Release()
	for range 2 {
		if err := d.Close(within(t)); err != nil {
			t.Error(err)
		}
	}
	select {
	case <-d.Daemon().Done():
	default:
		t.Error("the daemon runs")
	}
	wantEmpty(t, dir)
}

func TestOpenFailsAndLeavesNothing(t *testing.T) {
	tools := testguest.Find(t)
	for name, tc := range map[string]struct {
		daemon string
		want   error  // or
		says   string // part of the message, for people
	}{
		"no daemon configured":         {"", ErrUnavailable, ""},
		"the daemon is missing":        {"/no/such/daemon", os.ErrNotExist, ""},
		"the daemon is a directory":    {"/", ErrUnavailable, ""},
		"the daemon ends at once":      {"/bin/false", nil, "the daemon has ended"},
		"the daemon is something else": {tools.QEMU, nil, "invalid option"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			_, err := Open(within(t), Config{Kind: VhostUser, Daemon: tc.daemon, Dir: dir})
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error is %v", err)
			}
			wantEmpty(t, dir)
		})
	}
}

func TestDaemonThatMakesNoSocketMeetsTheDeadline(t *testing.T) {
	dir := shortDir(t)
	daemon := filepath.Join(t.TempDir(), "daemon")
	if err := os.WriteFile(daemon, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, Config{Kind: VhostUser, Daemon: daemon, Dir: dir}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	wantEmpty(t, dir)
}

func TestLongSocketPathIsRefusedWithItsLength(t *testing.T) {
	dir := "/" + strings.Repeat("d", maxSocketPath-1-len("/"+readySocket))
	if err := checkSocketPaths(dir); err != nil {
		t.Errorf("%d bytes: %v", len(dir)+1+len(readySocket), err)
	}
	err := checkSocketPaths(dir + "d")
	if err == nil || !strings.Contains(err.Error(), "108 bytes") {
		t.Errorf("error is %v", err)
	}
}

func TestUnknownKindIsRefused(t *testing.T) {
	if _, err := Open(t.Context(), Config{Kind: "tcp"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("error is %v", err)
	}
}

func TestWaitReadyMeetsItsDeadlineAndCanBeRepeated(t *testing.T) {
	d, dir := open(t)
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := d.WaitReady(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		cancel()
	}
	// What the daemon does when the guest dials port 1028.
	var waiting sync.WaitGroup
	for range 3 {
		waiting.Go(func() {
			if err := d.WaitReady(within(t)); err != nil {
				t.Error(err)
			}
		})
	}
	conn, err := net.Dial("unix", filepath.Join(dir, readySocket))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	waiting.Wait()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.WaitReady(ended); err != nil {
		t.Errorf("once ready, always ready: %v", err)
	}
}

func TestConnectRequest(t *testing.T) {
	for name, tc := range map[string]struct {
		answer string
		want   error
		ok     bool
	}{
		"accepted":                   {"OK 1073741824\nrest", nil, true},
		"refused":                    {"", unix.ECONNREFUSED, false},
		"cut":                        {"OK 10", unix.ECONNREFUSED, false},
		"something else":             {"NO\n", nil, false},
		"no end of line":             {strings.Repeat("x", 1000), nil, false},
		"an OK without end of line ": {"OK " + strings.Repeat("1", 1000), nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			go func() {
				defer theirs.Close()
				line := make([]byte, 64)
				if n, err := theirs.Read(line); err != nil || string(line[:n]) != "CONNECT 1024\n" {
					t.Errorf("request is %q, %v", line[:n], err)
				}
				fmt.Fprint(theirs, tc.answer)
			}()
			err := request(ours, 1024)
			if (err == nil) != tc.ok || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error is %v", err)
			}
			if tc.ok {
				rest := make([]byte, 4)
				if _, err := ours.Read(rest); err != nil || string(rest) != "rest" {
					t.Errorf("what followed the answer is %q, %v", rest, err)
				}
			}
		})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	d, dir := open(t)
	// In place of the daemon's socket, one that never answers.
	path := filepath.Join(dir, hostSocket)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Dial(ctx, PortAgent); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}

func FuzzNames(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00vsk\x00"), "vsk")
	f.Add([]byte("\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff\xff\xff\xffvsk\x00"), "vsk")
	f.Fuzz(func(_ *testing.T, events []byte, name string) { names(events, name) })
}
