package k8s

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/need"
)

// TestKubernetes runs workloads of people on a cluster of one node. Each part needs
// what the ones before it have made.
func TestKubernetes(t *testing.T) {
	need.NoError(t, missing())
	c := startCluster(t)
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"RuntimeClass", c.testRuntimeClass},
		{"Chart", c.testChart},
		{"Deployment", c.testDeployment},
		{"Volumes", c.testVolumes},
		{"ConfigMapThatChanges", c.testConfigMap},
		{"Service", c.testService},
		{"Job", c.testJob},
		{"Logs", c.testLogs},
		{"Exec", c.testExec},
		{"Terminal", c.testTerminal},
		{"PortForward", c.testPortForward},
		{"Debug", c.testDebug},
		{"Resize", c.testResize},
		{"Top", c.testTop},
		{"Liveness", c.testLiveness},
		{"FullVolume", c.testFullVolume},
		{"DeletionLeavesNothing", c.testDeletion},
	} {
		if !t.Run(part.name, part.test) && part.name == "Deployment" {
			return
		}
	}
}

// testDeployment has a pod of two containers become ready, by its three probes.
func (c *cluster) testDeployment(t *testing.T) {
	began := time.Now()
	c.apply(t, "web.yaml")
	c.kubectl(t, "wait", "--for=condition=Available", "deployment/web", "--timeout="+patience.String())
	t.Logf("available after %v", time.Since(began).Round(100*time.Millisecond))
	pod := c.webPod(t)
	if got := c.field(t, pod, "{.spec.overhead.memory}"); got != c.field(t, "runtimeclass/erofsvm", "{.overhead.podFixed.memory}") {
		t.Errorf("the overhead of the pod is %q", got)
	}
	if got := c.field(t, pod, "{.status.containerStatuses[*].restartCount}"); got != "0 0" {
		t.Errorf("restarts: %q", got)
	}
	if vms, err := c.bed.VMs(); err != nil || len(vms) != 1 {
		t.Errorf("there are the VMs %v, want one: %v", vms, err)
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(c.sh(t, pod, "web", "uname -r")); got == unix.ByteSliceToString(host.Release[:]) || got == "" {
		t.Errorf("the kernel of the pod is %q, the host's", got)
	}
}

// webPod is the pod of the deployment, as kubectl names it.
func (c *cluster) webPod(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(c.kubectl(t, "get", "pods", "--selector=app=web", "--output=name"))
}

// testVolumes looks at what the kubelet gives to every pod, and at the emptyDirs.
func (c *cluster) testVolumes(t *testing.T) {
	pod := c.webPod(t)
	for _, look := range []struct{ what, container, script, want string }{
		{"the secret, by way of the init container", "side", "cat /scratch/word", "sesame"},
		{"what one container writes is the other's", "side", "echo here > /scratch/seen", ""},
		{"", "web", "cat /scratch/seen", "here\n"},
		{"the emptyDir in memory has its size", "side", "df -k /memory | tail -1 | awk '{print $2}'", "16384\n"},
		{"the downward API", "side", "echo pod/$POD", pod + "\n"},
		{"the name of the pod", "side", "echo pod/$(hostname)", pod + "\n"},
		{"its address in its hosts", "side", "grep -c $(ip -4 -o addr show eth0 | awk '{print $4}' | cut -d/ -f1) /etc/hosts", "1\n"},
		{"the cluster's nameserver", "side", "grep nameserver /etc/resolv.conf", "nameserver " + nameserver + "\n"},
		{"the service account", "side", "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace", "default"},
		{"the memory limit", "web", "cat /sys/fs/cgroup/memory.max", "67108864\n"},
	} {
		look.script = strings.ReplaceAll(look.script, "awk", "busybox awk")
		if got := c.sh(t, pod, look.container, look.script); got != look.want {
			t.Errorf("%s: %q says %q, want %q", look.what, look.script, got, look.want)
		}
	}
}

// testConfigMap changes a configmap, which the pod then sees without a restart.
func (c *cluster) testConfigMap(t *testing.T) {
	pod := c.webPod(t)
	if got := c.sh(t, pod, "web", "cat /pages/index.html"); got != "first" {
		t.Errorf("the page is %q", got)
	}
	c.kubectl(t, "patch", "configmap/pages", "--patch", `{"data": {"index.html": "second"}}`)
	c.until(t, "the pod sees the change", 2*time.Minute, func() (bool, string) {
		got, err := c.run(t, "", "exec", pod, "--container=web", "--", "cat", "/pages/index.html")
		return err == nil && got == "second", got
	})
}

// testService asks the pod by the address of the Service, from the node.
func (c *cluster) testService(t *testing.T) {
	url := "http://" + c.field(t, "service/web", "{.spec.clusterIP}") + "/index.html"
	c.until(t, url, 30*time.Second, func() (bool, string) {
		got, err := get(t, url)
		return err == nil && got == "second", got
	})
}

// testJob has another pod ask the Service, and end.
func (c *cluster) testJob(t *testing.T) {
	began := time.Now()
	c.apply(t, "job.yaml")
	c.kubectl(t, "wait", "--for=jsonpath={.status.conditions[*].status}=True", "job/ask", "--timeout="+patience.String())
	if got := c.field(t, "job/ask", "{.status.conditions[*].type}"); !strings.Contains(got, "Complete") {
		t.Fatalf("the Job is %s; it says: %s", got, c.kubectl(t, "logs", "job/ask"))
	}
	t.Logf("complete after %v", time.Since(began).Round(100*time.Millisecond))
	if got := c.kubectl(t, "logs", "job/ask"); got != "second" {
		t.Errorf("the Job got %q", got)
	}
	pod := strings.TrimSpace(c.kubectl(t, "get", "pods", "--selector=job-name=ask", "--output=name"))
	if got := c.field(t, pod, "{.status.containerStatuses[0].state.terminated.message}"); got != "bye\n" {
		t.Errorf("the termination message is %q", got)
	}
	c.until(t, "the VM of the Job is gone", e2etest.Step, func() (bool, string) {
		vms, err := c.bed.VMs()
		if err != nil {
			t.Fatal(err)
		}
		return len(vms) == 1, fmt.Sprint(vms)
	})
}

// testLiveness has the liveness probe fail: the kubelet starts the container again, in
// the same VM, beside the other that runs on.
func (c *cluster) testLiveness(t *testing.T) {
	pod := c.webPod(t)
	before, err := c.bed.VMs()
	if err != nil {
		t.Fatal(err)
	}
	c.sh(t, pod, "side", "rm /scratch/alive")
	c.until(t, "the container is started again", 2*time.Minute, func() (bool, string) {
		got := c.field(t, pod, `{.status.containerStatuses[?(@.name=="web")].restartCount}`)
		return got == "1", got
	})
	c.sh(t, pod, "side", "touch /scratch/alive")
	c.kubectl(t, "wait", "--for=condition=Ready", pod, "--timeout=120s")
	if got := c.field(t, pod, `{.status.containerStatuses[?(@.name=="side")].restartCount}`); got != "0" {
		t.Errorf("the other container was started again %s times", got)
	}
	if after, err := c.bed.VMs(); err != nil || !slices.Equal(before, after) {
		t.Errorf("the VMs were %v and are %v: %v", before, after, err)
	}
}

// testFullVolume has a pod write more into a volume than it may: it is evicted.
func (c *cluster) testFullVolume(t *testing.T) {
	c.apply(t, "full.yaml")
	c.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Failed", "pod/full", "--timeout="+patience.String())
	if got := c.field(t, "pod/full", "{.status.reason}: {.status.message}"); !strings.HasPrefix(got, "Evicted: Usage of EmptyDir volume") {
		t.Errorf("it has failed: %s", got)
	}
}

// testDeletion takes everything away again.
func (c *cluster) testDeletion(t *testing.T) {
	for _, file := range []string{"web.yaml", "job.yaml", "full.yaml"} {
		path, err := filepath.Abs(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		c.kubectl(t, "delete", "--ignore-not-found", "--filename="+path, "--timeout=120s")
	}
	c.until(t, "the pods are gone", 2*time.Minute, func() (bool, string) {
		got := c.kubectl(t, "get", "pods", "--output=name")
		return got == "", got
	})
	c.until(t, "their volumes are gone", time.Minute, func() (bool, string) {
		left, err := os.ReadDir(filepath.Join(c.kubelet, "pods"))
		if err != nil {
			t.Fatal(err)
		}
		return len(left) == 0, strings.Join(names(left), " ")
	})
	c.until(t, "their cgroups are gone", time.Minute, func() (bool, string) {
		left, err := groupsOfPods(c.group)
		if err != nil {
			t.Fatal(err)
		}
		return len(left) == 0, strings.Join(left, "\n")
	})
	// The kubelet looks every minute for containers whose pods are gone.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// Processes, mounts (network namespaces are such), files, snapshots, containers.
	left, err := c.bed.Leftovers(ctx)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v\n  %s", err, strings.Join(left, "\n  "))
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && name != "node0" && name != bridge {
			t.Errorf("the node still has the interface %s (%s)", name, l.Type())
		}
	}
}

func names(entries []os.DirEntry) []string {
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
