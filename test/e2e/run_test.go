package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

func TestMain(m *testing.M) { e2etest.Main(m) }

// TestCtrRunUnderEveryRelease: what a person types, under each supported line
// of containerd: output on the right stream, the exit code, a kernel that is
// not the host's, and nothing left.
func TestCtrRunUnderEveryRelease(t *testing.T) {
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Fatal(err)
	}
	hostKernel := unix.ByteSliceToString(host.Release[:])
	for _, release := range harness.Releases {
		t.Run(release, func(t *testing.T) {
			bed := e2etest.Release(t, release)
			image := bed.Image(t, "two", harness.Snapshotter)
			stdout, stderr, code := bed.CtrRun(t, nil, image, "first", "sh", "-c",
				"uname -r; echo to stderr >&2; exit 42")
			if code != 42 {
				t.Errorf("exit code %d, want 42; stderr: %s", code, stderr)
			}
			if kernel := strings.TrimSpace(stdout); kernel == "" || kernel == hostKernel {
				t.Errorf("kernel %q in the container, %q on the host", kernel, hostKernel)
			}
			if !strings.Contains(stderr, "to stderr") || strings.Contains(stdout, "to stderr") {
				t.Errorf("stdout %q, stderr %q", stdout, stderr)
			}
		})
	}
}

// TestExitCodes: the code of exit(2), and 128 and the number of a signal.
func TestExitCodes(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	for _, c := range []struct {
		script string
		want   uint32
	}{
		{"exit 0", 0},
		{"exit 255", 255},
		{"kill -KILL $$", 137},
	} {
		t.Run(c.script, func(t *testing.T) {
			// A process that is PID 1 of its namespace gets no signals from
			// within; the one that ends is its child, whose code it passes on.
			_, code := bed.Run(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", "sh -c '" + c.script + "'; exit $?"}})
			if code != c.want {
				t.Errorf("code %d, want %d", code, c.want)
			}
		})
	}
}

// TestACommandThatIsNotThere fails the start with its name and leaves nothing.
func TestACommandThatIsNotThere(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	_, stderr, code := bed.CtrRun(t, nil, image, "absent", "/no/such/command")
	if code == 0 || !strings.Contains(stderr, "/no/such/command") {
		t.Errorf("code %d, stderr %q", code, stderr)
	}
}

// TestTwoContainersOfOneImageAtOnce: two VMs read the same layers at the same
// time, each with a writable layer of its own.
func TestTwoContainersOfOneImageAtOnce(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "two", harness.Snapshotter)
	script := "echo mine > /written && sync && cat /written && ls / | wc -l && read line && echo $line"
	feeds := make([]*os.File, 2)
	containers := make([]*e2etest.Container, 2)
	for i := range containers {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		feeds[i] = w
		containers[i] = bed.Start(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", strings.ReplaceAll(script, "mine", fmt.Sprint("mine", i))}, Stdin: r})
	}
	for i, c := range containers {
		c.Stdout.WaitFor(t, fmt.Sprint("mine", i))
	}
	for i, c := range containers {
		if _, err := fmt.Fprintf(feeds[i], "both ran %d\n", i); err != nil {
			t.Fatal(err)
		}
		if code := c.WaitExit(t); code != 0 {
			t.Errorf("container %d: code %d, stderr %s", i, code, c.Stderr)
		}
		if want := fmt.Sprint("both ran ", i); !strings.Contains(c.Stdout.String(), want) {
			t.Errorf("container %d: %q, want %q", i, c.Stdout, want)
		}
		c.Delete(t)
	}
}
