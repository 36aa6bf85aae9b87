package k8s

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// chartNamespace is that of the chart in the golden files of test/kubernetes.
const chartNamespace = "vms"

// accountDir is where a pod finds its account.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// testRuntimeClass applies what nodes that were installed by hand are given, and sees
// the kubelet know the handler.
func (c *cluster) testRuntimeClass(t *testing.T) {
	c.kubectl(t, "apply", "--filename="+filepath.Join(c.bed.Tree.Root, "configs", "kubernetes", "runtimeclass.yaml"))
	if got := c.field(t, "runtimeclass/erofsvm", "{.handler}"); got != handler {
		t.Errorf("the handler is %q", got)
	}
	if got := c.field(t, "node/"+nodeName, "{.status.runtimeHandlers[*].name}"); !slices.Contains(strings.Fields(got), handler) {
		t.Errorf("the node has the handlers %q", got)
	}
}

// testChart has the API server take what the chart makes, by its own rules, and the
// chart's account do what it is for: label the node, and nothing else.
func (c *cluster) testChart(t *testing.T) {
	golden := filepath.Join(c.bed.Tree.Root, "test", "kubernetes", "testdata", "default.yaml")
	c.kubectl(t, "create", "namespace", chartNamespace)
	c.kubectl(t, "apply", "--dry-run=server", "--filename="+golden)

	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	ofAccount := regexp.MustCompile(`(?m)^kind: (ServiceAccount|ClusterRole|ClusterRoleBinding)$`)
	account := slices.DeleteFunc(strings.Split(string(text), "\n---\n"), func(one string) bool { return !ofAccount.MatchString(one) })
	if out, err := c.run(t, strings.Join(account, "\n---\n"), "apply", "--filename=-"); err != nil {
		t.Fatal(out, err)
	}
	for _, forbidden := range [][]string{{"delete", "nodes"}, {"get", "secrets"}, {"create", "pods"}} {
		args := append([]string{"auth", "can-i", "--as=system:serviceaccount:" + chartNamespace + ":erofsvm"}, forbidden...)
		if out, err := c.run(t, "", args...); err == nil || strings.TrimSpace(out) != "no" {
			t.Errorf("the chart's account can %v: %q, %v", forbidden, out, err)
		}
	}
	c.lend(t, c.kubectl(t, "create", "token", "erofsvm", "--namespace="+chartNamespace))
	// Without KVM, or with it, as the machine has it.
	ready, kvm := `{.metadata.labels.erofsvm\.io/ready}`, `{.metadata.labels.erofsvm\.io/kvm}`
	c.label(t, nil, func() (bool, string) {
		got := c.field(t, "node/"+nodeName, ready+" "+kvm)
		return strings.HasPrefix(got, "true ") && len(got) > len("true "), got
	})
	c.label(t, []string{"--remove"}, func() (bool, string) {
		got := c.field(t, "node/"+nodeName, ready+kvm)
		return got == "", got
	})
}

// lend makes an account that of the programs on the node that think that they are
// in a pod.
func (c *cluster) lend(t *testing.T, token string) {
	t.Helper()
	ca, err := os.ReadFile(c.ca.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(accountDir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(accountDir) })
	for name, text := range map[string][]byte{"token": []byte(token), "ca.crt": ca} {
		if err := os.WriteFile(filepath.Join(accountDir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// label runs the program of the DaemonSet until done says so.
func (c *cluster) label(t *testing.T, args []string, done func() (bool, string)) {
	t.Helper()
	tree, release := c.bed.Tree, harness.Releases[0]
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	path := []string{filepath.Dir(tree.MkfsErofs()), filepath.Dir(tree.Containerd(release)), os.Getenv("PATH")}
	cmd := exec.CommandContext(ctx, tree.Build("bin", "erofsvm"), append([]string{
		"label", "--every=1s", "--node=" + nodeName, "--config=" + c.bed.ShimConfigPath(), "--shim=" + tree.Shim(),
		"--containerd=" + tree.Containerd(release), "--socket=" + c.bed.Socket(), "--path=" + strings.Join(path, ":"),
	}, args...)...)
	cmd.Env = append(c.environment(), "KUBERNETES_SERVICE_HOST="+nodeAddress, "KUBERNETES_SERVICE_PORT=6443")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("erofsvm label %v says: %s", args, &said)
		}
	})
	defer func() {
		cancel()
		_ = cmd.Wait() // it was interrupted
	}()
	c.until(t, "erofsvm label "+strings.Join(args, " "), e2etest.Step, done)
}
