package hostgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// table is a mount table with two hierarchies, one of them with a blank in its
// name, and what is none. The folders stand in for them.
func table(t *testing.T) (text, one, other, part string) {
	t.Helper()
	dir := t.TempDir()
	one, other, part = filepath.Join(dir, "cpu"), filepath.Join(dir, "two words"), filepath.Join(dir, "part")
	for _, d := range []string{one, other, part} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("32 31 0:29 / %s rw,relatime shared:1 - cgroup cgroup rw,cpu\n"+
		"33 31 0:30 / %s rw,relatime - cgroup2 none rw\n"+
		"34 31 0:31 /below %s rw,relatime - cgroup2 none rw\n"+
		"35 31 0:32 / %s rw,relatime - ext4 /dev/a rw\n"+
		"nonsense\n", one, strings.ReplaceAll(other, " ", `\040`), part, dir), one, other, part
}

func group(t *testing.T, hierarchy, path string) (procs string) {
	t.Helper()
	dir := filepath.Join(hierarchy, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	procs = filepath.Join(dir, "cgroup.procs")
	if err := os.WriteFile(procs, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return procs
}

func TestAProcessJoinsEveryHierarchyThatHasTheGroup(t *testing.T) {
	mounts, one, other, part := table(t)
	in := []string{group(t, one, "pods/a"), group(t, other, "pods/a")}
	out := []string{group(t, one, "pods/b"), group(t, part, "pods/a")}
	if err := join(strings.NewReader(mounts), 42, "/pods/a"); err != nil {
		t.Fatal(err)
	}
	for _, file := range in {
		if text, err := os.ReadFile(file); err != nil || string(text) != "42" {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
	for _, file := range out {
		if text, err := os.ReadFile(file); err != nil || len(text) != 0 {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
}

func TestAGroupThatIsNowhereIsAnError(t *testing.T) {
	mounts, _, _, _ := table(t)
	if err := join(strings.NewReader(mounts), 42, "/pods/a"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "/pods/a") {
		t.Errorf("%v", err)
	}
	for _, path := range []string{"", "pods", "/pods/../a", "/pods/"} {
		if err := join(strings.NewReader(mounts), 42, path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestTheHostsMountTableIsUnderstood(t *testing.T) {
	if err := Join(os.Getpid(), "/erofsvm-test-of-a-group-that-is-not-there"); !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
}
