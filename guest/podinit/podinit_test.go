package podinit

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/test/need"
)

// TestMain has this very binary be the first process, as the agent's is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Word {
		Main()
	}
	goleak.VerifyTestMain(m)
}

// made is a namespace whose first process ends with the test.
func made(t *testing.T) (n *Namespace, path string, pid int) {
	t.Helper()
	need.Root(t, "to make a pid namespace")
	n = &Namespace{}
	path, err := n.Path(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid = pidOf(t, path)
	t.Cleanup(func() { end(t, n, pid) })
	return n, path, pid
}

func pidOf(t *testing.T, path string) int {
	t.Helper()
	pid, err := strconv.Atoi(filepath.Base(strings.TrimSuffix(path, "/ns/pid")))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// end kills the first process and waits until the namespace has forgotten it.
func end(t *testing.T, n *Namespace, pid int) {
	t.Helper()
	_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	within(t, "the first process has ended", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.first == nil || n.first.pid != pid
	})
}

func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	// What is looked for has no event for others.
	tick, deadline := time.NewTicker(time.Millisecond), time.After(10*time.Second)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestAllGetTheSameNamespace(t *testing.T) {
	n, path, _ := made(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if again, err := n.Path(t.Context()); err != nil || again != path {
				t.Errorf("%s, %v, want %s", again, err, path)
			}
		})
	}
	all.Wait()
	theirs, err := os.Readlink(path)
	if own, _ := os.Readlink("/proc/self/ns/pid"); err != nil || theirs == own {
		t.Errorf("%s is %s, %v", path, theirs, err)
	}
}

func TestTheFirstProcessHasNothing(t *testing.T) {
	_, _, pid := made(t)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "Groups:\t \n"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	root := fmt.Sprintf("/proc/%d/root", pid)
	if files, err := os.ReadDir(root); err != nil || len(files) > 0 {
		t.Errorf("it sees %v, %v", files, err)
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pid))
	if err != nil || bytes.Count(mounts, []byte("\n")) != 1 {
		t.Errorf("it has mounts, %v:\n%s", err, mounts)
	}
	// Dumpable is off: what is its own is root's.
	if info, err := os.Stat(fmt.Sprintf("/proc/%d/environ", pid)); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("nobody may look into it: %v", err)
	}
}

func TestOrphansAreGoneAndSignalsAreNotHeard(t *testing.T) {
	_, path, pid := made(t)
	// The shell leaves a child behind, an orphan from then on.
	script := "sleep 0.1 & kill -TERM 1; kill -HUP 1; kill -CHLD 1; exit 0"
	if out, err := exec.Command("nsenter", "--pid="+path, "/bin/sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	children := fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)
	within(t, "no child is left", func() bool {
		left, err := os.ReadFile(children)
		return err == nil && len(bytes.TrimSpace(left)) == 0
	})
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the first process: %v", err)
	}
}

func TestANamespaceThatEndedIsMadeAgain(t *testing.T) {
	n, path, pid := made(t)
	end(t, n, pid)
	again, err := n.Path(t.Context())
	if err != nil || again == path {
		t.Fatalf("%s, %v", again, err)
	}
	end(t, n, pidOf(t, again))
}
