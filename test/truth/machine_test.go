package truth

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/truth/layers"
	"github.com/erofsvm/erofsvm/test/truth/vm"
)

// machine is a virtual machine that the subtests of a test share. A container
// that does nothing keeps it alive.
type machine struct {
	*vm.VM
	chain  *chain
	keeper *vm.Container
}

// startMachine boots a virtual machine. When the test ends, it must still live.
func startMachine(t *testing.T, change func(harness.ShimConfig)) *machine {
	t.Helper()
	tree := built(t)
	c, err := made.chain()
	if err != nil {
		t.Fatal(err)
	}
	v, err := vm.New(tree, change)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{VM: v, chain: c}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), step)
		defer cancel()
		if t.Failed() {
			m.dmesg(t)
		}
		if m.keeper != nil {
			if err := m.keeper.Delete(ctx); err != nil {
				t.Errorf("the container that was there all along: %v", err)
			}
		}
		if err := v.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if t.Failed() {
			t.Logf("the end of the log:\n%s", tail(v.Log(), 40))
		}
	})
	keeper, err := v.Create(within(t, boot), layers.Active(layers.Upper{Image: m.image(t)}, layers.Lowers(c.plain[0])...), "/"+inGuest, "wait")
	if err != nil {
		t.Fatalf("boot: %v\n%s", err, tail(v.Log(), 40))
	}
	m.keeper = keeper
	if err := keeper.Start(within(t, step)); err != nil {
		t.Fatal(err)
	}
	return m
}

// dmesg logs what the guest's kernel has said last.
func (m *machine) dmesg(t *testing.T) {
	t.Helper()
	result, err := m.Run(within(t, step), layers.View(layers.Lowers(m.chain.plain[0])...), "/"+inGuest, "dmesg")
	t.Logf("the end of the kernel's log (%v):\n%s%s", err, tail(result.Stdout, 60), result.Stderr)
}

// image is a writable image of the test's own, with the program in it.
func (m *machine) image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rwlayer.img")
	cp := exec.CommandContext(within(t, step), "cp", "--sparse=always", m.chain.writable, path)
	if out, err := cp.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// run runs the program with these arguments, which must end with 0 and without
// a complaint, and returns what it prints.
func (m *machine) run(t *testing.T, mounts []rootfs.Mount, args ...string) string {
	t.Helper()
	result, err := m.Run(within(t, step), mounts, append([]string{"/" + inGuest}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	if result.Code != 0 || result.Stderr != "" {
		t.Fatalf("%q ends with %d: %s", args, result.Code, result.Stderr)
	}
	return result.Stdout
}

// strategy is what the runtime last made of a list of mounts.
func (m *machine) strategy() string {
	log := m.Log()
	at := strings.LastIndex(log, "rootfs planned")
	if at < 0 {
		return ""
	}
	line, _, _ := strings.Cut(log[at:], "\n")
	_, rest, _ := strings.Cut(line, "strategy=")
	name, _, _ := strings.Cut(rest, " ")
	return name
}

// openFiles are the files below dir that QEMU has open, each as often as it is.
func (m *machine) openFiles(t *testing.T, dir string) []string {
	t.Helper()
	var open []string
	fds := fmt.Sprintf("/proc/%d/fd", m.Pid())
	entries, err := os.ReadDir(fds)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(fds, e.Name()))
		if err == nil && strings.HasPrefix(target, dir+"/") {
			open = append(open, target)
		}
	}
	return open
}

func tail(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
