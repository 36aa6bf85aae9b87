package hostgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/need"
)

// stageEnv says what this program is, other than the tests.
const stageEnv = "EROFSVM_TEST_STAGE"

func TestMain(m *testing.M) {
	stage, argument, _ := strings.Cut(os.Getenv(stageEnv), " ")
	switch stage {
	case "program":
		runProgram()
		return
	case "unified":
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(unix.Mount("none", "/sys/fs/cgroup", "cgroup2", 0, ""))
	case "read-only":
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(unix.Mount("none", "/sys/fs/cgroup", "cgroup2", unix.MS_RDONLY, ""))
	case "systemd":
		becomeSystemd(argument)
	}
	goleak.VerifyTestMain(m)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// again runs tests of this program in another stage.
func again(t *testing.T, stage, group, tests string) (output []byte, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.v", "-test.run", tests)
	cmd.Env = append(os.Environ(), stageEnv+"="+stage, groupEnv+"="+group, raceEnv)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if stage == "unified" || stage == "read-only" {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS // the pids of /proc are the test's
	}
	return cmd.CombinedOutput()
}

// The tests that hold in every host.
const everywhere = "^TestGroup"

// TestAHostWithCgroup2Alone has the tests run where the hierarchy of version 2 is
// what there is, as far as this process is concerned. Its controllers can be those
// of version 1 all the same.
func TestAHostWithCgroup2Alone(t *testing.T) {
	need.Root(t, "to mount")
	out, err := again(t, "unified", "", everywhere)
	if err != nil || bytes.Count(out, []byte("--- PASS")) < 3 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestACgroupThatCannotBeMadeIsAnErrorThatNamesIt(t *testing.T) {
	if os.Getenv(stageEnv) == "read-only" {
		p := startProgram(t)
		g, err := New("/erofsvm-test/pod")
		if err != nil {
			t.Fatal(err)
		}
		err = g.Enter(t.Context(), p.cmd.Process.Pid)
		if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "/erofsvm-test/pod") {
			t.Errorf("%v", err)
		}
		return
	}
	need.Root(t, "to mount")
	out, err := again(t, "read-only", "", "^"+t.Name()+"$")
	if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSystemd has the tests run as a service of a systemd, with cgroups of either
// version, where scopes are made by it.
func TestSystemd(t *testing.T) {
	need.Root(t, "to mount, and to be the first process of a namespace")
	tree, err := harness.FindTree()
	if err != nil {
		t.Fatal(err)
	}
	root := tree.Tool("systemd", "root")
	need.NoError(t, harness.Need("tools", root))
	for _, version := range []string{"1", "2"} {
		t.Run("cgroup v"+version, func(t *testing.T) {
			outer := makeOuter(t)
			result := t.TempDir()
			out, err := again(t, fmt.Sprintf("systemd %s %s %s %s", version, root, outer, result), "", everywhere)
			said, readErr := os.ReadFile(filepath.Join(result, "out"))
			if err != nil || readErr != nil || bytes.Count(said, []byte("--- PASS")) < 3 {
				t.Errorf("%v, %v\n%s\n%s", err, readErr, out, said)
			}
		})
	}
}

// makeOuter makes a cgroup in every hierarchy, which is all that a systemd of a test
// sees, and returns its path.
func makeOuter(t *testing.T) string {
	outer := fmt.Sprintf("/erofsvm-test-%d", os.Getpid())
	dirs := outerDirs(t.Fatalf, outer)
	t.Cleanup(func() {
		for _, dir := range dirs {
			var below []string
			_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					below = append(below, path)
				}
				return nil
			})
			for i := len(below) - 1; i >= 0; i-- {
				if err := os.Remove(below[i]); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // a process needs some
			text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), text, 0)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
				t.Fatal(err)
			}
		}
	}
	return outer
}

func outerDirs(fatal func(string, ...any), outer string) []string {
	mounts, err := os.Open(mountTable)
	if err != nil {
		fatal("%v", err)
	}
	defer mounts.Close()
	points, err := hierarchies(mounts)
	if err != nil {
		fatal("%v", err)
	}
	for i := range points {
		points[i] = filepath.Join(points[i], outer)
	}
	return points
}

// becomeSystemd makes a host of its own and does not return: this process is its
// systemd then, which runs the tests as a service and ends with them.
func becomeSystemd(argument string) {
	runtime.LockOSThread()
	var version, root, outer, result string
	if _, err := fmt.Sscan(argument, &version, &root, &outer, &result); err != nil {
		panic(err)
	}
	var hierarchies []string // of version 1
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(err)
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup" && !strings.Contains(f[3], "name=systemd") {
			hierarchies = append(hierarchies, filepath.Base(f[1]))
		}
	}
	for _, dir := range outerDirs(func(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }, outer) {
		must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0))
	}
	must(unix.Unshare(unix.CLONE_NEWCGROUP))

	at := func(name string) string { return filepath.Join(root, name) }
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(unix.Mount(root, root, "", unix.MS_BIND, ""))
	must(unix.Mount("proc", at("proc"), "proc", 0, ""))
	must(unix.Mount("sysfs", at("sys"), "sysfs", unix.MS_RDONLY, ""))
	for _, dir := range []string{"run", "dev"} {
		must(unix.Mount("tmpfs", at(dir), "tmpfs", 0, "mode=755"))
	}
	must(unix.Mount(result, at("test"), "", unix.MS_BIND, ""))
	must(os.WriteFile(at("dev/null"), nil, 0o666))
	must(unix.Mount("/dev/null", at("dev/null"), "", unix.MS_BIND, ""))
	if version == "2" {
		must(unix.Mount("none", at("sys/fs/cgroup"), "cgroup2", 0, ""))
	} else {
		must(unix.Mount("tmpfs", at("sys/fs/cgroup"), "tmpfs", 0, "mode=755"))
		for _, one := range append(hierarchies, "systemd", "unified") {
			dir := at("sys/fs/cgroup/" + one)
			must(os.Mkdir(dir, 0o755))
			switch one {
			case "systemd":
				must(unix.Mount("none", dir, "cgroup", 0, "none,name=systemd"))
			case "unified":
				must(unix.Mount("none", dir, "cgroup2", 0, ""))
			default:
				must(unix.Mount("none", dir, "cgroup", 0, one))
			}
		}
	}
	must(os.MkdirAll(at("run/systemd/system"), 0o755))
	must(os.WriteFile(at("run/tests"), nil, 0o755))
	self, err := os.Readlink("/proc/self/exe")
	must(err)
	must(unix.Mount(self, at("run/tests"), "", unix.MS_BIND, ""))
	must(os.WriteFile(at("run/systemd/system/tests.service"), []byte(`[Unit]
DefaultDependencies=no
SuccessAction=exit
FailureAction=exit
[Service]
Type=oneshot
Environment=`+groupEnv+`=kubepods-burstable-pod1.slice:cri-containerd:leaf
Environment=`+raceEnv+`
ExecStart=/run/tests -test.v -test.run `+everywhere+`
StandardOutput=file:/test/out
StandardError=file:/test/out
`), 0o644))
	must(unix.Chroot(root))
	must(unix.Chdir("/"))
	must(syscall.Exec("/lib/systemd/systemd", []string{"systemd", "--unit=tests.service", "--log-target=console", "--show-status=0"},
		[]string{"container=test", "PATH=/usr/sbin:/usr/bin"}))
}
