package storage

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// privateMounts runs the test again in a process whose every thread is in a
// mount namespace of its own, and returns false there; outside, where the test
// has nothing more to do, it returns true.
func privateMounts(t *testing.T) (done bool) {
	t.Helper()
	need.Root(t, "to mount")
	const inside = "EROFSVM_TEST_PRIVATE_MOUNTS"
	if os.Getenv(inside) == "1" {
		return false
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in a mount namespace of its own: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP: "+t.Name()+" ") {
		t.Skipf("%s", out)
	}
	return true
}

// mountsBelow lists the mount points below dir.
func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	return found
}

// tool finds a program of the set-up or of the system.
func tool(t *testing.T, name, set string) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	path := filepath.Join(filepath.Dir(here), "..", "..", ".build", "tools", set, name)
	if root := os.Getenv("EROFSVM_TOOLS"); root != "" {
		path = filepath.Join(root, set, name)
	}
	if _, err := os.Stat(path); err == nil && set != "" {
		return path
	}
	path, err := exec.LookPath(name)
	if err != nil {
		need.Missing(t, "run test/setup/tools.sh: %v", err)
	}
	return path
}
