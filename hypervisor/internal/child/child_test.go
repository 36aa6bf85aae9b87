package child_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/internal/child"
	"github.com/erofsvm/erofsvm/test/need"
)

const patience = 20 * time.Second

// parentMode makes the test binary a parent that starts a child, prints its
// identity and waits to be killed.
const parentMode = "CHILD_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parentMode) != "" {
		p, err := child.Start(exec.Command("sleep", "1000"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := json.NewEncoder(os.Stdout).Encode(p.Identity()); err != nil {
			os.Exit(1)
		}
		<-p.Done()
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, name string, args ...string) *child.Process {
	t.Helper()
	p, err := child.Start(exec.Command(name, args...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(within(t)); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestEndOfAChildIsReported(t *testing.T) {
	for name, tc := range map[string]struct {
		script, want string
	}{
		"exit 0": {"exit 0", ""},
		"exit 3": {"exit 3", "exit status 3"},
		"signal": {"kill -TERM $$", "signal: terminated"},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, "sh", "-c", tc.script)
			<-p.Done()
			got := ""
			if err := p.Err(); err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("ended with %q, want %q", got, tc.want)
			}
		})
	}
}

func TestStartOfAMissingProgramFails(t *testing.T) {
	if _, err := child.Start(exec.Command("/no/such/program")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}

func TestKillIsIdempotent(t *testing.T) {
	p := start(t, "sleep", "1000")
	if err := p.Err(); err != nil {
		t.Errorf("a running child has ended with %v", err)
	}
	for range 2 {
		if err := p.Kill(within(t)); err != nil {
			t.Error(err)
		}
	}
	if err := p.Err(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("ended with %v", err)
	}
}

func TestIdentityKillsTheProcessItNames(t *testing.T) {
	p := start(t, "sleep", "1000")
	for range 2 {
		if err := p.Identity().Kill(within(t)); err != nil {
			t.Error(err)
		}
	}
	<-p.Done()
}

func TestIdentityOfAnotherStartTimeKillsNothing(t *testing.T) {
	p := start(t, "sleep", "1000")
	other := p.Identity()
	other.StartTime--
	if err := other.Kill(within(t)); err != nil {
		t.Error(err)
	}
	if err := (child.Identity{}).Kill(within(t)); err != nil {
		t.Errorf("the zero identity: %v", err)
	}
	if err := syscall.Kill(p.Identity().Pid, 0); err != nil || p.Err() != nil {
		t.Errorf("the process is gone: %v, %v", err, p.Err())
	}
}

func TestChildDiesWithItsParent(t *testing.T) {
	parent := exec.CommandContext(within(t), os.Args[0])
	parent.Env = append(os.Environ(), parentMode+"=1")
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var id child.Identity
	if err := json.Unmarshal(line, &id); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(id.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	if n != 1 {
		t.Errorf("the child outlives its parent (%v)", err)
	}
	if err := id.Kill(within(t)); err != nil {
		t.Error(err)
	}
}

// The thread that starts the child enters the namespace, and nobody else may get
// onto it afterwards.
func TestChildStartsInAnotherNetworkNamespace(t *testing.T) {
	need.Root(t, "to make a network namespace")
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command("unshare", "--net", "sleep", "1000")
	holder, err := child.Start(parent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Kill(within(t)) })
	path := fmt.Sprintf("/proc/%d/ns/net", holder.Identity().Pid)
	var theirs string
	for theirs = ours; theirs == ours; { // unshare(1) gets there at once
		if theirs, err = os.Readlink(path); err != nil {
			t.Fatal(err)
		}
	}
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for range 20 {
		p, err := child.StartIn(exec.Command("sleep", "1000"), ns)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.Identity().Pid)); got != theirs || err != nil {
			t.Errorf("the child is in %s, %v, want %s", got, err, theirs)
		}
		if err := p.Kill(within(t)); err != nil {
			t.Error(err)
		}
		for _, path := range []string{"/proc/self/ns/net", "/proc/thread-self/ns/net"} {
			if got, err := os.Readlink(path); got != ours || err != nil {
				t.Errorf("%s is %s, %v, want %s", path, got, err, ours)
			}
		}
	}
	if _, err := child.StartIn(exec.Command("true"), os.Stdin); err == nil {
		t.Error("a file that is no namespace is entered")
	}
}
