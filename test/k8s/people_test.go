package k8s

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/image"
)

// testLogs reads what a container has said, and follows what it says.
func (c *cluster) testLogs(t *testing.T) {
	pod := c.webPod(t)
	kernel := c.sh(t, pod, "web", "uname -r")
	if got := c.kubectl(t, "logs", pod, "--container=web"); got != "serving on "+kernel {
		t.Errorf("the log is %q", got)
	}
	lines := c.follow(t, "logs", "--follow", "--tail=0", pod, "--container=web")
	c.sh(t, pod, "web", "echo later > /proc/1/fd/1")
	if got := lines.next(t); got != "later" {
		t.Errorf("the log goes on with %q", got)
	}
}

// testExec runs programs in containers, with what they read and how they end.
func (c *cluster) testExec(t *testing.T) {
	pod := c.webPod(t)
	got, err := c.run(t, "one\ntwo\n", "exec", "--stdin", pod, "--container=side", "--", "wc", "-l")
	if err != nil || strings.TrimSpace(got) != "2" {
		t.Errorf("wc says %q, %v", got, err)
	}
	_, err = c.run(t, "", "exec", pod, "--container=side", "--", "/bin/sh", "-c", "exit 7")
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 7 {
		t.Errorf("kubectl ends with %v, want 7", err)
	}
}

// testTerminal runs a shell at a terminal, whose size is that of the terminal here.
func (c *cluster) testTerminal(t *testing.T) {
	here, there := terminal(t, 33, 99)
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	cmd := c.command(ctx, "exec", "--stdin", "--tty", c.webPod(t), "--container=side", "--", "/bin/sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = there, there, there
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines, done := make(chan string, 100), make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for text := bufio.NewScanner(here); text.Scan(); {
			lines <- text.Text()
		}
	}()
	// What is typed comes back, but not what it stands for.
	if _, err := io.WriteString(here, "echo size: $(stty size), terminal: $(test -t 0 && echo yes); exit 5\n"); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	there.Close() // the last one: so here ends
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 5 {
		t.Errorf("kubectl ends with %v, want 5", err)
	}
	var said []string
	for line := range lines {
		said = append(said, strings.TrimRight(line, "\r"))
	}
	<-done
	if !slices.ContainsFunc(said, func(line string) bool { return strings.HasSuffix(line, "size: 33 99, terminal: yes") }) {
		t.Errorf("the terminal shows %q", said)
	}
}

// terminal makes a terminal: what a person has, and what programs have.
func terminal(t *testing.T, rows, columns uint16) (here, there *os.File) {
	t.Helper()
	here, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	fd := int(here.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}
	if err != nil {
		t.Fatalf("terminal: %v", err)
	}
	if there, err = os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { there.Close() })
	return here, there
}

// testPortForward asks the pod through kubectl.
func (c *cluster) testPortForward(t *testing.T) {
	lines := c.follow(t, "port-forward", c.webPod(t), ":8080")
	line := lines.next(t)
	var port int
	if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d -> 8080", &port); err != nil {
		t.Fatalf("kubectl says %q: %v", line, err)
	}
	for range 3 {
		if got, err := get(t, fmt.Sprintf("http://127.0.0.1:%d/index.html", port)); err != nil || got != "second" {
			t.Errorf("the page is %q, %v", got, err)
		}
	}
}

// testDebug puts an ephemeral container into the pod, which sees another's processes.
func (c *cluster) testDebug(t *testing.T) {
	pod := c.webPod(t)
	c.kubectl(t, "debug", pod, "--image="+image.One, "--image-pull-policy=Never", "--container=debugger", "--profile=general",
		"--", "/bin/sh", "-c", "busybox wget -q -O - http://127.0.0.1:8080/index.html")
	c.until(t, "the ephemeral container has ended", 2*time.Minute, func() (bool, string) {
		got := c.field(t, pod, "{.status.ephemeralContainerStatuses[0].state}")
		return strings.Contains(got, "terminated"), got
	})
	if got := c.kubectl(t, "logs", pod, "--container=debugger"); got != "second" {
		t.Errorf("the ephemeral container says %q", got)
	}
}

// testResize raises a limit of a container that runs.
func (c *cluster) testResize(t *testing.T) {
	pod := c.webPod(t)
	c.kubectl(t, "patch", pod, "--subresource=resize", "--patch",
		`{"spec": {"containers": [{"name": "web", "resources": {"limits": {"memory": "96Mi"}}}]}}`)
	c.until(t, "the container has the new limit", time.Minute, func() (bool, string) {
		got := c.sh(t, pod, "web", "cat /sys/fs/cgroup/memory.max")
		return got == "100663296\n", got
	})
	c.until(t, "the pod's status has it", time.Minute, func() (bool, string) {
		got := c.field(t, pod, `{.status.containerStatuses[?(@.name=="web")].resources.limits.memory}`)
		return got == "96Mi", got
	})
	if got := c.field(t, pod, `{.status.containerStatuses[?(@.name=="web")].restartCount}`); got != "0" {
		t.Errorf("the container was started again %s times", got)
	}
}

// testTop has metrics-server tell what pods and the node take.
func (c *cluster) testTop(t *testing.T) {
	c.user(t, "metrics-server", "system:masters") // instead of the roles of its manifest
	c.start(t, "metrics-server", append(c.serverFlags(t, "metrics-server.kube-system.svc", "metrics-server"),
		"--secure-port=4443", "--metric-resolution=10s", "--kubelet-request-timeout=9s", "--kubelet-preferred-address-types=InternalIP",
		"--kubelet-certificate-authority="+c.ca.path)...)
	c.apply(t, "metrics.yaml")
	ca, err := os.ReadFile(c.ca.path)
	if err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "patch", "apiservice/v1beta1.metrics.k8s.io", "--type=merge", "--patch",
		fmt.Sprintf(`{"spec": {"caBundle": %q}}`, base64.StdEncoding.EncodeToString(ca)))
	c.kubectl(t, "wait", "--for=condition=Available", "apiservice/v1beta1.metrics.k8s.io", "--timeout=120s")
	pod := strings.TrimPrefix(c.webPod(t), "pod/")
	for _, args := range [][]string{
		{"top", "pod", pod, "--containers", "--no-headers"},
		{"top", "pod", pod, "--no-headers"},
		{"top", "node", "--no-headers"},
	} {
		c.until(t, "kubectl "+strings.Join(args, " "), 2*time.Minute, func() (bool, string) {
			got, err := c.run(t, "", args...)
			if err != nil {
				return false, err.Error()
			}
			t.Logf("%s", got)
			return got != "", got
		})
	}
}

// output are the lines of a command that runs on.
type output struct{ lines <-chan string }

// follow starts kubectl, which is ended with the test.
func (c *cluster) follow(t *testing.T, args ...string) *output {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	cmd := c.command(ctx, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	lines, done := make(chan string, 100), make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for text := bufio.NewScanner(out); text.Scan(); {
			lines <- text.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range lines { // so that nobody waits to be read
		}
		<-done
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("kubectl %s says: %s", strings.Join(args, " "), &errs)
		}
	})
	return &output{lines}
}

func (o *output) next(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-o.lines:
		if !ok {
			t.Fatal("kubectl has ended")
		}
		return line
	case <-time.After(e2etest.Step):
		t.Fatalf("kubectl says nothing within %v", e2etest.Step)
	}
	return ""
}

// get asks for a page.
func get(t *testing.T, url string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if resp.StatusCode != http.StatusOK {
		return resp.Status, err
	}
	return string(text), err
}
