package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// patience bounds every wait for a guest: it is emulated, on a machine that may
// have other things to do, or may itself be emulated.
var patience = 2 * time.Minute

const (
	// patienceVar is a duration that replaces patience.
	patienceVar = "EROFSVM_TEST_PATIENCE"
	// initrdVar is the guest's initramfs, where there is no Go to build it.
	initrdVar = "EROFSVM_TEST_INITRD"
)

// sharedDir holds what is built once for all tests.
var sharedDir string

func TestMain(m *testing.M) {
	if os.Getenv(ownerMode) != "" {
		os.Exit(ownVM())
	}
	if s := os.Getenv(patienceVar); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", patienceVar, err)
			os.Exit(1)
		}
		patience = d
	}
	var err error
	if sharedDir, err = os.MkdirTemp("", "qemu-test"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(sharedDir)
		os.Exit(code)
	}))
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// guestSpec is a VM that boots the guest of testguest.
func guestSpec(t *testing.T) Spec {
	t.Helper()
	tools := testguest.Find(t)
	return Spec{
		Dir:         filepath.Join(shortDir(t), "vm"),
		Binary:      tools.QEMU,
		Accelerator: AcceleratorTCG,
		VCPUs:       1,
		MemoryMiB:   256,
		Kernel:      tools.Kernel,
		Initrd:      initrd(t, tools),
		DiskSlots:   40,
		Vsock:       vsock.VhostUser,
		VsockDaemon: tools.VsockDaemon,
	}
}

// stoppedSpec is a VM whose guest never runs.
func stoppedSpec(t *testing.T) Spec {
	t.Helper()
	s := guestSpec(t)
	s.stopped = true
	return s
}

var (
	initrdOnce sync.Once
	initrdPath string
)

// initrd builds the guest's initramfs once for all tests of the package.
func initrd(t *testing.T, tools testguest.Tools) string {
	t.Helper()
	initrdOnce.Do(func() {
		if initrdPath = os.Getenv(initrdVar); initrdPath != "" {
			return
		}
		path := filepath.Join(sharedDir, "initrd.cpio")
		testguest.Initramfs(t, tools, path, testguest.Content{
			Init: testguest.BuildInit(t, sharedDir), Modules: testguest.BootModules,
		})
		initrdPath = path
	})
	if initrdPath == "" {
		t.Fatal("the initramfs could not be built")
	}
	return initrdPath
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// start starts a VM that is killed at the end of the test, and then must leave
// nothing.
func start(t *testing.T, spec Spec) *Machine {
	t.Helper()
	m, err := Start(within(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Kill(within(t)); err != nil {
			t.Error(err)
		}
		wantNothingLeft(t, m.Record())
	})
	return m
}

// wantNothingLeft fails if a process or the directory of a VM is still there.
func wantNothingLeft(t *testing.T, r Record) {
	t.Helper()
	for _, pid := range []int{r.QEMU.Pid, r.VsockDaemon.Pid} {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); pid != 0 && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("process %d is still there (%v)", pid, err)
		}
	}
	if _, err := os.Stat(r.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", r.Dir, err)
	}
}

// image writes a disk image of so many MiB, the content of which differs with id.
func image(t *testing.T, id string, mib int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), id+".img")
	b := make([]byte, mib<<20)
	for i := range b {
		b[i] = byte(i/512) ^ id[i%len(id)]
	}
	if err := os.WriteFile(path, b, 0o444); err != nil {
		t.Fatal(err)
	}
	return path
}

// guest is a connection to the program in the guest.
type guest struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Scanner
}

func dial(t *testing.T, m *Machine) *guest {
	t.Helper()
	conn, err := m.Dial(within(t), vsock.PortAgent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &guest{t: t, conn: conn, lines: bufio.NewScanner(conn)}
}

// ask sends a line and decodes the answer.
func (g *guest) ask(answer any, format string, args ...any) {
	g.t.Helper()
	question := fmt.Sprintf(format, args...)
	if err := g.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		g.t.Fatal(err)
	}
	if _, err := fmt.Fprintln(g.conn, question); err != nil {
		g.t.Fatal(err)
	}
	if !g.lines.Scan() {
		g.t.Fatalf("%s: no answer: %v", question, g.lines.Err())
	}
	if err := json.Unmarshal(g.lines.Bytes(), answer); err != nil {
		g.t.Fatalf("%s: %s: %v", question, g.lines.Bytes(), err)
	}
}

// guestDisk is a disk as the guest sees it.
type guestDisk struct {
	Name     string `json:"name"`
	Serial   string `json:"serial"`
	PCIPath  string `json:"pci_path"`
	Bytes    int64  `json:"bytes"`
	ReadOnly bool   `json:"read_only"`
}

// disks waits until the guest has n disks, and returns them by serial.
func (g *guest) disks(n int) map[string]guestDisk {
	g.t.Helper()
	var list []guestDisk
	g.ask(&list, "disks %d", n)
	found := map[string]guestDisk{}
	for _, d := range list {
		found[d.Serial] = d
	}
	return found
}
