package cri

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/image"
)

// forever is a script that says what is in /tmp/say, ends when /tmp/die is there,
// and on SIGTERM at once.
const forever = `trap 'exit 0' TERM; echo started
	while [ ! -e /tmp/die ]; do if [ -e /tmp/say ]; then cat /tmp/say; rm /tmp/say; fi; sleep 0.2; done; exit 3`

func TestPods(t *testing.T) {
	for _, release := range releases() {
		t.Run(release, func(t *testing.T) {
			r := startCRI(t, release)
			for _, handler := range handlers(release) {
				t.Run(handler, func(t *testing.T) { testHandler(t, r, handler) })
			}
		})
	}
}

// testHandler is one way into a pod.
func testHandler(t *testing.T, r *runtime, handler string) {
	t.Run("life", func(t *testing.T) { testPod(t, r, handler) })
	if handler == podsandbox || *all && handler != streaming {
		t.Run("volumes", func(t *testing.T) { testVolumes(t, r, handler) })
	}
	if !*all {
		return
	}
	if handler == virtioFS {
		t.Run("host paths", func(t *testing.T) { testHostPaths(t, r) })
		return
	}
	if handler == streaming {
		t.Run("containerd restarts", func(t *testing.T) { testRestart(t, r, handler) })
		t.Run("streams", func(t *testing.T) { testStreams(t, r, handler) })
		return
	}
	t.Run("the VM dies", func(t *testing.T) { testVMDeath(t, r, handler) })
	t.Run("the shim dies", func(t *testing.T) { testShimDeath(t, r, handler) })
	t.Run("containerd restarts", func(t *testing.T) { testRestart(t, r, handler) })
	if r.bed.Release() != harness.Releases[0] || handler == realPause {
		return // nothing of theirs is in what follows
	}
	t.Run("security contexts", func(t *testing.T) { testSecurity(t, r, handler) })
	t.Run("refusals", func(t *testing.T) { testRefusals(t, r, handler) })
	t.Run("streams", func(t *testing.T) { testStreams(t, r, handler) })
	t.Run("ten containers", func(t *testing.T) { testMany(t, r, handler, 10) })
}

// testPod is the life of a pod with an init container, one that works, and a
// sidecar that crashes and comes back.
func testPod(t *testing.T, r *runtime, handler string) {
	p := r.pod(t, handler, func(c *cri.PodSandboxConfig) {
		if handler == realPause { // the one that is not on a network
			c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		}
	})
	if s := p.state(t); s != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v", s)
	}
	first := p.start(t, spec{name: "init", image: image.One, script: "echo prepared"})
	if code := first.exit(t); code != 0 {
		t.Errorf("the init container ends with %d", code)
	}
	first.logged(t, first.log, "prepared")
	first.delete(t)

	app := p.start(t, spec{name: "app", image: image.Two, script: forever})
	side := p.start(t, spec{name: "side", image: image.One, script: forever})
	app.logged(t, app.log, "started")
	inCommon(t, app, side)

	own := p.start(t, spec{name: "own-pids", image: image.One, pid: cri.NamespaceMode_CONTAINER, script: forever})
	if pids := own.sh(t, "cat /proc/1/cmdline"); !strings.Contains(pids, "echo started") {
		t.Errorf("the first process of a container with pids of its own is %q", pids)
	}
	if name := own.sh(t, "hostname"); name != "the-pod\n" {
		t.Errorf("its name is %q", name)
	}
	if handler != realPause {
		reached(t, app)
	}
	counted(t, app)
	p.counted(t)
	if handler != realPause && r.bed.Release() == harness.Releases[0] { // others do not export anything, nor is one without a network
		p.exported(t)
	}
	p.grouped(t)
	rotated(t, app)

	side.sh(t, "touch /tmp/die")
	if code := side.exit(t); code != 3 {
		t.Errorf("the sidecar ends with %d", code)
	}
	if s := app.status(t).GetState(); s != cri.ContainerState_CONTAINER_RUNNING || app.sh(t, "echo there") != "there\n" {
		t.Errorf("after the end of another, a container is %v", s)
	}
	side.delete(t)
	again := p.start(t, spec{name: "side", attempt: 1, image: image.One, script: forever})
	if out := again.sh(t, "ls /tmp"); out != "" {
		t.Errorf("a new container has files of the old one: %s", out)
	}

	if _, err := app.StopContainer(step(t), &cri.StopContainerRequest{ContainerId: app.id, Timeout: 10}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if code := app.exit(t); code != 0 {
		t.Errorf("the container that was told to end ends with %d", code)
	}
	if _, err := p.StopPodSandbox(step(t), &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stop the pod: %v", err)
	}
	if code := again.exit(t); code == 0 {
		t.Errorf("a container of a pod that was stopped ends with %d", code)
	}
	if s := p.state(t); s != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v", s)
	}
	p.remove(t)
}

// inCommon looks at what two containers of a pod share.
func inCommon(t *testing.T, a, b *container) {
	t.Helper()
	a.sh(t, "echo shared > /dev/shm/x")
	for _, c := range []struct{ script, want string }{
		{"cat /dev/shm/x", "shared\n"},
		{"hostname; cat /etc/hostname", "the-pod\nthe-pod\n"},
		{"cat /etc/resolv.conf", "search pods.example\nnameserver 192.0.2.53\noptions ndots:5\n"},
		{"grep -q '127.0.0.1.*localhost' /etc/hosts", ""},
		{"cat /proc/sys/kernel/shm_rmid_forced", "1\n"},
	} {
		if got := b.sh(t, c.script); got != c.want {
			t.Errorf("%s: %q, want %q", c.script, got, c.want)
		}
	}
	if out := b.sh(t, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"); strings.Count(out, "echo started") < 2 {
		t.Errorf("processes that the sidecar sees: %s", out)
	}
	if a.sh(t, "readlink /proc/self/ns/ipc") != b.sh(t, "readlink /proc/self/ns/ipc") {
		t.Error("two ipc namespaces")
	}
	if a.sh(t, "cat /etc/image") != "two\n" || b.sh(t, "cat /etc/image") != "one\n" {
		t.Error("they have each other's files")
	}
}

// reached asks a container over the pod's network.
func reached(t *testing.T, c *container) {
	t.Helper()
	s, err := c.PodSandboxStatus(step(t), &cri.PodSandboxStatusRequest{PodSandboxId: c.pod.id})
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(s.GetStatus().GetNetwork().GetIp(), "80")
	c.sh(t, "mkdir /tmp/www && echo reached > /tmp/www/who && busybox httpd -p 80 -h /tmp/www")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: c.node.Dial}}
	request, err := http.NewRequestWithContext(step(t), http.MethodGet, "http://"+address+"/who", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		t.Errorf("%s at %s: %v", c.name, address, err)
		return
	}
	defer answer.Body.Close()
	if text, err := io.ReadAll(answer.Body); err != nil || string(text) != "reached\n" {
		t.Errorf("%s at %s says %q, %v", c.name, address, text, err)
	}
}

// counted looks at the statistics.
func counted(t *testing.T, c *container) {
	t.Helper()
	s, err := c.ContainerStats(step(t), &cri.ContainerStatsRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("statistics of %s: %v", c.name, err)
	}
	if s.GetStats().GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetStats().GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("statistics of %s: %v", c.name, s.GetStats())
	}
}

func (p *pod) counted(t *testing.T) {
	t.Helper()
	s, err := p.PodSandboxStats(step(t), &cri.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("statistics of the pod: %v", err)
	}
	linux := s.GetStats().GetLinux()
	var cpu, memory uint64
	for _, c := range linux.GetContainers() {
		cpu += c.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		memory += c.GetMemory().GetWorkingSetBytes().GetValue()
	}
	if len(linux.GetContainers()) < 3 || cpu == 0 || memory == 0 {
		t.Errorf("statistics of its containers: %v", linux.GetContainers())
	}
	// It costs what QEMU and the guest's kernel take, too. Of processor time it can cost
	// less: a guest does not know when its host has run something else.
	const bare = 64 << 20
	if linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetMemory().GetWorkingSetBytes().GetValue() < memory+bare {
		t.Errorf("the pod uses %v and %v, its containers %d ns and %d bytes", linux.GetCpu(), linux.GetMemory(), cpu, memory)
	}
}

// exported looks at what a kubelet exports for Prometheus where it asks the CRI and not
// its own cAdvisor. Containers have theirs by name.
func (p *pod) exported(t *testing.T) {
	t.Helper()
	all, err := p.ListPodSandboxMetrics(step(t), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatalf("metrics: %v", err)
	}
	for _, one := range all.GetPodMetrics() {
		if one.GetPodSandboxId() != p.id {
			continue
		}
		for _, c := range one.GetContainerMetrics() {
			values := map[string]uint64{}
			for _, m := range c.GetMetrics() {
				values[m.GetName()] = max(values[m.GetName()], m.GetValue().GetValue())
			}
			if values["container_cpu_usage_seconds_total"]+values["container_cpu_system_seconds_total"]+values["container_cpu_user_seconds_total"] == 0 && values["container_memory_working_set_bytes"] == 0 {
				t.Errorf("container %s: %v", c.GetContainerId(), values)
			}
		}
		if len(one.GetContainerMetrics()) < 3 || len(one.GetMetrics()) == 0 {
			t.Errorf("%d metrics of the pod, and those of %d containers", len(one.GetMetrics()), len(one.GetContainerMetrics()))
		}
		return
	}
	t.Error("the pod has no metrics")
}

// rotated rotates the log as a kubelet does.
func rotated(t *testing.T, c *container) {
	t.Helper()
	dir := c.config.GetLogDirectory()
	if err := os.Rename(filepath.Join(dir, c.log), filepath.Join(dir, "rotated")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReopenContainerLog(step(t), &cri.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
		t.Fatalf("reopen the log: %v", err)
	}
	c.sh(t, "echo rotated > /tmp/new; mv /tmp/new /tmp/say")
	c.logged(t, c.log, "rotated")
	c.logged(t, "rotated", "started")
}

// testMany is a pod with many containers at a time.
func testMany(t *testing.T, r *runtime, handler string, n int) {
	p := r.pod(t, handler, nil)
	var all []*container
	for i := range n {
		all = append(all, p.start(t, spec{name: fmt.Sprint("c", i), image: image.One, script: forever}))
	}
	for i, c := range all {
		if out := c.sh(t, fmt.Sprintf("echo %d > /dev/shm/%d; cat /dev/shm/%d", i, i, i)); out != fmt.Sprintln(i) {
			t.Errorf("%s says %q", c.name, out)
		}
	}
	for _, c := range all[:n/2] {
		c.sh(t, "touch /tmp/die")
	}
	for _, c := range all[:n/2] {
		if code := c.exit(t); code != 3 {
			t.Errorf("%s ends with %d", c.name, code)
		}
		c.delete(t)
	}
	p.remove(t)
}
