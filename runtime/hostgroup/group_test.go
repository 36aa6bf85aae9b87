package hostgroup

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs2"

	"github.com/erofsvm/erofsvm/test/need"
)

// groupEnv names the cgroup of the tests in a host that is not that of the tests.
const groupEnv = "EROFSVM_TEST_GROUP"

// groupName is a cgroup that nobody else has.
func groupName() string {
	return cmp.Or(os.Getenv(groupEnv), fmt.Sprintf("/erofsvm-test-%d/pod/leaf", os.Getpid()))
}

// raceEnv keeps a process that the race detector watches from sleeping at its end.
const raceEnv = "GORACE=atexit_sleep_ms=0"

// program is a process that can be told to use something.
type program struct {
	cmd  *exec.Cmd
	tell io.WriteCloser
	hear *bufio.Scanner
}

// used is what a program that is told to takes, in bytes of memory.
const used = 16 << 20

func startProgram(t *testing.T) *program {
	t.Helper()
	need.Root(t, "to make cgroups")
	p := &program{cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), stageEnv+"=program", raceEnv)
	var err error
	if p.tell, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.hear = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	return p
}

func (p *program) end() {
	p.tell.Close()
	_ = p.cmd.Wait()
}

// work has it use memory and a processor.
func (p *program) work(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(p.tell, "work\n"); err != nil {
		t.Fatal(err)
	}
	if !p.hear.Scan() || p.hear.Text() != "done" {
		t.Fatalf("it says %q, %v", p.hear.Text(), p.hear.Err())
	}
}

// runProgram is the other side.
func runProgram() {
	var kept []byte
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		kept = make([]byte, used)
		for began := time.Now(); time.Since(began) < 50*time.Millisecond; {
			for i := range kept {
				kept[i]++
			}
		}
		fmt.Println("done")
	}
	_ = kept
}

// groups are the cgroups of a process, by the controllers of the hierarchy.
func (p *program) groups(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	of := map[string]string{}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		of[parts[1]] = parts[2]
	}
	return of
}

// make makes a group with a program in it. What is left of it at the end is removed.
func makeGroup(t *testing.T) (*Group, *program) {
	t.Helper()
	p := startProgram(t)
	g, err := New(groupName())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.end()
		if err := Remove(context.WithoutCancel(t.Context()), groupName()); err != nil {
			t.Error(err)
		}
		for _, dir := range g.manager.GetPaths() {
			for up := path.Dir(dir); strings.Contains(up, "erofsvm-test-"); up = path.Dir(up) {
				if err := os.Remove(up); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
			}
		}
	})
	if err := g.Enter(t.Context(), p.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return g, p
}

// left are the directories that there are of a group, by the host's mount table.
func left(t *testing.T) []string {
	t.Helper()
	mounts, err := os.Open(mountTable)
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close()
	points, err := hierarchies(mounts)
	if err != nil || len(points) == 0 {
		t.Fatalf("hierarchies: %v, %v", points, err)
	}
	n, err := parse(groupName())
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, point := range points {
		if _, err := os.Lstat(filepath.Join(point, n.path)); err == nil {
			dirs = append(dirs, filepath.Join(point, n.path))
		}
	}
	return dirs
}

func TestGroupHasAProcessUntilItIsClosed(t *testing.T) {
	p := startProgram(t)
	before := p.groups(t)
	p.end()
	g, p := makeGroup(t)
	for hierarchy, is := range p.groups(t) {
		if is != g.name.path && mounted(t, hierarchy) {
			t.Errorf("in hierarchy %s it is in %s", hierarchy, is)
		}
	}
	if _, err := New(groupName()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another gets the same: %v", err)
	}
	p.work(t)
	use, err := g.Usage()
	if err != nil || use.Processes == 0 {
		t.Errorf("usage: %+v, %v", use, err)
	}
	if use.CPU < 1e6 && (cgroups.IsCgroup2UnifiedMode() || mounted(t, "cpuacct")) {
		t.Errorf("processor time: %+v", use)
	}
	if (use.Memory < used || use.Anonymous < used || use.Limit < use.Memory) && mounted(t, "memory") {
		t.Errorf("memory: %+v", use)
	}
	for range 2 {
		if err := g.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if dirs := left(t); len(dirs) > 0 {
			t.Errorf("there are %v", dirs)
		}
	}
	for hierarchy, is := range p.groups(t) {
		if is != before[hierarchy] {
			t.Errorf("in hierarchy %s it is in %s, and was in %s", hierarchy, is, before[hierarchy])
		}
	}
}

// mounted says whether a hierarchy, by its controllers in /proc/pid/cgroup, is one
// that groups are made in.
func mounted(t *testing.T, controllers string) bool {
	t.Helper()
	if cgroups.IsCgroup2UnifiedMode() {
		text, err := os.ReadFile(fs2.UnifiedMountpoint + "/cgroup.controllers")
		if err != nil {
			t.Fatal(err)
		}
		return controllers == "" || slices.Contains(strings.Fields(string(text)), controllers)
	}
	first, _, _ := strings.Cut(controllers, ",")
	_, err := cgroups.FindCgroupMountpoint("", first)
	return err == nil && first != "devices" && (first != "" || cgroups.IsCgroup2HybridMode())
}

func TestGroupIsClosedWithOthersInIt(t *testing.T) {
	g, _ := makeGroup(t)
	other := startProgram(t)
	for _, dir := range left(t) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, other.cmd.Process.Pid), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	other.work(t)
}

func TestGroupSendsAnotherProcessHome(t *testing.T) {
	g, p := makeGroup(t)
	other := startProgram(t)
	for _, dir := range left(t) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, other.cmd.Process.Pid), 0); err != nil {
			t.Fatal(err)
		}
	}
	within := func(path string) bool { return path == g.name.path }
	if is := slices.Collect(maps.Values(other.groups(t))); !slices.ContainsFunc(is, within) {
		t.Fatalf("it is not in the group: %v", is)
	}
	if err := g.SendHome(other.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	// Not where it was before, of which systemd may have made something else meanwhile.
	if is := slices.Collect(maps.Values(other.groups(t))); slices.ContainsFunc(is, within) {
		t.Errorf("it is still there: %v", is)
	}
	if use, err := g.Usage(); err != nil || use.Processes == 0 {
		t.Errorf("the group's own process: %+v, %v", use, err)
	}
	p.end()
	other.end()
	if err := g.SendHome(other.cmd.Process.Pid); err != nil {
		t.Errorf("a process that has ended: %v", err)
	}
}

func TestGroupIsRemovedByOthersAfterItsProcesses(t *testing.T) {
	_, p := makeGroup(t)
	if dirs := left(t); len(dirs) == 0 {
		t.Fatal("there is none")
	}
	p.end()
	for range 2 {
		if err := Remove(t.Context(), groupName()); err != nil {
			t.Fatal(err)
		}
		if dirs := left(t); len(dirs) > 0 {
			t.Errorf("there are %v", dirs)
		}
	}
}

func TestGroupWithoutAProcessIsNotMade(t *testing.T) {
	g, err := New(groupName())
	if err != nil {
		t.Fatal(err)
	}
	gone := startProgram(t)
	gone.end()
	if err := g.Enter(t.Context(), gone.cmd.Process.Pid); err == nil {
		t.Error("a process that is gone is in a cgroup")
	}
	if dirs := left(t); len(dirs) > 0 {
		t.Errorf("there are %v", dirs)
	}
	if err := g.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
