package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
)

// TestMain makes this test's program stand for the command.
func TestMain(m *testing.M) {
	if os.Getenv("EROFSVM_TEST_RUN_MAIN") == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

func run(t *testing.T, stdin string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "EROFSVM_TEST_RUN_MAIN=1", "HOME="+t.TempDir())
	cmd.Stdin = strings.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

// TestAPlanIsThatOfTheRuntime has lists that are refused unless the defaults of
// the configuration are taken, which then end at the files.
func TestAPlanIsThatOfTheRuntime(t *testing.T) {
	layer := `{"type":"erofs","source":"/nonexistent/layer.erofs","options":["ro"]}`
	verity := strings.Replace(layer, `"ro"`, `"ro","X-containerd.dmverity=/nonexistent/x"`, 1)
	host := `{"type":"format/overlay","source":"overlay","options":["upperdir=/nonexistent/u","workdir=/nonexistent/w","lowerdir={{ mount 0 }}"]}`
	made := `{"type":"mkfs/ext4","source":"/nonexistent/rwlayer.img","options":["rw","X-containerd.mkfs.size=64M"]}`
	for _, list := range []string{"[" + layer + "," + host + "]", "[" + layer + "," + made + "]", "[" + verity + "]"} {
		if stdout, stderr, status := run(t, list, "plan"); status != 1 || stdout != "" || !strings.Contains(stderr, "/nonexistent/layer.erofs") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("status %d, %q and %q for %s, want the layer that is missing", status, stdout, stderr, list)
		}
	}
}

// TestAPlanNeedsNoRootAndNoQEMU runs as nobody where the test is root's, and with
// nothing in PATH: layers that cannot be merged without mkfs.erofs then have a
// partition each.
func TestAPlanNeedsNoRootAndNoQEMU(t *testing.T) {
	dir, err := os.MkdirTemp("", "plan") // that of the test would be root's alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	list := `[{"type":"erofs","source":"` + dir + `/b"},{"type":"erofs","source":"` + dir + `/a"},` +
		`{"type":"format/overlay","source":"overlay","options":["lowerdir={{ overlay 0 1 }}"]}]`
	for name, data := range map[string][]byte{"a": erofs.Empty(), "b": erofs.Empty(), "program": program, "list.json": []byte(list)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dir+"/program", "plan", "-o", "json", dir+"/list.json")
	cmd.Env, cmd.Dir = []string{"EROFSVM_TEST_RUN_MAIN=1", "HOME=/nonexistent", "PATH=/nonexistent"}, "/"
	if os.Geteuid() == 0 {
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	var plan struct {
		Strategy string
		Disks    []struct{ Extents, Partitions []any }
		Warnings []string
	}
	if err := json.Unmarshal(out, &plan); err != nil {
		t.Fatal(err)
	}
	if plan.Strategy != "partitioned" || len(plan.Disks) != 1 || len(plan.Disks[0].Partitions) != 2 || len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0], "mkfs.erofs") {
		t.Errorf("plan is %s, want two partitions and a warning of the tool that is missing", out)
	}
}

// TestARefusalIsStatus1AndOneLine also has errors of the command line.
func TestARefusalIsStatus1AndOneLine(t *testing.T) {
	for name, c := range map[string]struct {
		stdin string
		args  []string
		says  string
	}{
		"host-mounted":    {`[{"type":"bind","source":"/a","options":["rbind"]}]`, []string{"plan"}, "erofs snapshotter"},
		"not a list":      {`{`, []string{"plan"}, "mount list"},
		"unknown flag":    {``, []string{"plan", "--nothing"}, "--nothing"},
		"unknown command": {``, []string{"plot"}, "plot"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, status := run(t, c.stdin, c.args...)
			if status != 1 || stdout != "" {
				t.Errorf("status %d and %q on standard output, want 1 and nothing", status, stdout)
			}
			if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "erofsvm: ") || !strings.Contains(stderr, c.says) {
				t.Errorf("says %q, want one line with %q", stderr, c.says)
			}
		})
	}
}
