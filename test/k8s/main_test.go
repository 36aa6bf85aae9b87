package k8s

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/conformance/place"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

var logs = flag.String("logs", "", "absolute path of a folder, outside of /tmp, /run, /var/lib and /var/log, that all logs are copied to")

// insideVar is set for the test binary in its place.
const insideVar = "EROFSVM_K8S_INSIDE"

func TestMain(m *testing.M) {
	place.Main()
	if os.Getenv(insideVar) != "" {
		if err := pretendDefaults(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		e2etest.Main(m)
		return
	}
	if missing() != nil { // the test says so
		os.Exit(m.Run())
	}
	status, err := inPlace()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(status)
}

// tools is the part of test/setup that brings Kubernetes.
const tools = "kubernetes"

// missing says what is not there to run a cluster with.
func missing() error {
	tree, err := harness.FindTree()
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("not root: a node needs to be")
	}
	return errors.Join(
		harness.Need("tools", tree.Tool("cni", "usr", "lib", "cni", "bridge")),
		harness.Need("kubernetes-tools", tree.Tool(tools, "bin", "kubelet"), tree.Tool(tools, "bin", "etcd")),
	)
}

// inPlace runs this program in a place of its own, where all paths that programs of
// a node have built in are folders of this run.
func inPlace() (status int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "erofsvm-k8s-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	defer func() { err = errors.Join(err, removeGroups(groupOf(dir))) }()
	p := place.Place{Dir: dir, Dirs: []string{"/run", "/tmp", "/var/lib", "/var/log"}}
	cmd, err := p.Command(ctx, os.Args[1:]...)
	if err != nil {
		return 1, err
	}
	cmd.Env = append(cmd.Env, insideVar+"="+groupOf(dir))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(1, exit.ExitCode()), nil
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

// kernelDefaults are the settings without which a kubelet does not run: it changes
// them, or fails if it may not (setupKernelTunables in pkg/kubelet/cm). No namespace
// has them of its own.
var kernelDefaults = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// pretendDefaults shows the kubelet the settings that it wants, and leaves those of the
// host alone: a file lies over each.
func pretendDefaults() error {
	dir, err := os.MkdirTemp("", "sysctl")
	if err != nil {
		return err
	}
	for name, value := range kernelDefaults {
		file := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o444); err != nil {
			return err
		}
		if err := unix.Mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("lay a file over %s: %w", name, err)
		}
	}
	return nil
}
