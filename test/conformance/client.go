package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/test/conformance/registry"
	"github.com/erofsvm/erofsvm/test/harness"
)

const containerdModule = "github.com/containerd/containerd/v2"

// clientShort are the client tests that fit into the check of every change, in two
// halves that take about as long as each other.
var clientShort = [][]string{
	{
		"TestRuntimeInfo", "TestContainerExec", "TestContainerAttach", "TestContainerPTY", "TestTaskResize", "TestContainerMetrics",
		"TestContainerNoBinaryExists", "TestContainerKillAll", "TestDeleteContainerExecCreated", "TestDaemonRestart", "TestShimInCgroup",
	},
	{
		"TestContainerOutput", "TestContainerCloseIO", "TestContainerHook", "TestContainerExecNoBinaryExists", "TestShortRunningTaskPid",
		"TestWaitStoppedProcess", "TestContainerKillInitKillsChildWhenNotHostPid", "TestShimSockLength", "TestShimDoesNotLeakPipes",
		"TestShimDoesNotLeakSockets", "TestDaemonReconnectsToShimIOPipesOnRestart",
	},
}

// clientLong is a client test that takes longer than all others together where the
// guest's processor is emulated: a hundred times it prints a million numbers.
const clientLong = "TestContainerExecLargeOutputWithTTY"

// clientTests builds and runs the client tests of a release of containerd.
func (b *bench) clientTests(release string) error {
	if err := harness.Need("tools", b.tree.Containerd(release), b.tree.Ctr(release)); err != nil {
		return err
	}
	b.say("Building the client tests of containerd %s", release)
	source, err := b.moduleDir(containerdModule + "@v" + release)
	if err != nil {
		return err
	}
	name := "containerd " + release
	binary := b.tree.Build("conformance", "client-"+release+".test")
	if _, err := b.goTool(source, "test", "-c", "-trimpath", "-o", binary, "./integration/client"); err != nil {
		return err
	}
	bin := b.tree.Build("conformance", "bin-"+release)
	if err := linkWrapper(bin); err != nil {
		return err
	}
	place, err := b.newPlace("client-" + release)
	if err != nil {
		return err
	}
	place.Dirs = append(place.Dirs, "/var/lib") // the tests remove theirs below it
	place.Hosts = registry.Hosts
	s := suite{
		name: name, binary: binary, dir: filepath.Join(source, "integration", "client"), place: place,
		sources: filepath.Join(source, "integration", "client"),
		inside:  []string{"-images", b.tree.Build("images", "one.tar"), "-containerd", "/run/containerd-test/containerd.sock"},
		args:    []string{"-test.root", "-no-criu"},
		env: []string{
			"TEST_RUNTIME=" + harness.Runtime, "TEST_SNAPSHOTTER=" + harness.Snapshotter,
			"RUNC_FLAVOR=none", // there is no runc whose binary could be exchanged
			containerdVar + "=" + b.tree.Containerd(release),
			"PATH=" + searchPath(bin, filepath.Dir(b.tree.Shim()), filepath.Dir(b.tree.Ctr(release)), filepath.Dir(b.tree.MkfsErofs())),
		},
	}
	passes := []pass{
		{run: "^Test", skip: "^" + clientLong + "$", timeout: 90 * time.Minute},
		{run: "^" + clientLong + "$", timeout: 90 * time.Minute},
	}
	if b.options.short {
		passes = nil
		for _, half := range clientShort {
			passes = append(passes, pass{run: "^(" + strings.Join(half, "|") + ")$", timeout: 10 * time.Minute})
		}
	}
	return b.judge(s, [][]pass{passes}, b.options.short)
}

func searchPath(dirs ...string) string {
	path := os.Getenv("PATH")
	for i := len(dirs) - 1; i >= 0; i-- {
		path = dirs[i] + ":" + path
	}
	return path
}

// moduleDir brings a module into the module cache and says where it is.
func (b *bench) moduleDir(module string) (string, error) {
	text, err := b.goTool(b.tree.Root, "mod", "download", "-json", module)
	if err != nil {
		return "", err
	}
	var answer struct{ Dir string }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return "", fmt.Errorf("go mod download %s: %w", module, err)
	}
	return answer.Dir, nil
}
