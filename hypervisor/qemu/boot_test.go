package qemu_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// bootTimeout is for a guest under emulation on a machine that does other things
// as well.
const bootTimeout = 90 * time.Second

// guestSpec is a VM that boots the guest of testguest.
func guestSpec(t *testing.T) qemu.Spec {
	t.Helper()
	tools := testguest.Find(t)
	return qemu.Spec{
		Dir:         filepath.Join(shortDir(t), "vm"),
		CacheDir:    filepath.Join(t.TempDir(), "cache"),
		Binary:      tools.QEMU,
		Accelerator: qemu.AcceleratorTCG,
		VCPUs:       1,
		MemoryMiB:   256,
		Kernel:      tools.Kernel,
		Initrd:      initrd(t, tools),
		DiskSlots:   62,
		Vsock:       vsock.VhostUser,
		VsockDaemon: tools.VsockDaemon,
	}
}

var (
	initrdOnce sync.Once
	initrdPath string
)

// initrd builds the guest's initramfs once for all tests of the package.
func initrd(t *testing.T, tools testguest.Tools) string {
	t.Helper()
	initrdOnce.Do(func() {
		path := filepath.Join(sharedDir, "initrd.cpio")
		testguest.Initramfs(t, tools, path, testguest.BuildInit(t, sharedDir), testguest.BootModules, nil)
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

func start(t *testing.T, spec qemu.Spec) *qemu.Machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	m, err := qemu.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
		defer cancel()
		if err := m.Kill(ctx); err != nil {
			t.Error(err)
		}
		wantNothingLeft(t, m.Record())
	})
	return m
}

func boot(t *testing.T, spec qemu.Spec) *qemu.Machine {
	t.Helper()
	m := start(t, spec)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	if err := m.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

// wantNothingLeft fails if a process or the directory of a VM is still there.
func wantNothingLeft(t *testing.T, r qemu.Record) {
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

// guest is a connection to the program in the guest.
type guest struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Scanner
}

func dial(t *testing.T, m *qemu.Machine) *guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	conn, err := m.Dial(ctx, vsock.PortAgent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &guest{t: t, conn: conn, lines: bufio.NewScanner(conn)}
}

func (g *guest) ask(answer any, format string, args ...any) {
	g.t.Helper()
	if err := g.conn.SetDeadline(time.Now().Add(bootTimeout)); err != nil {
		g.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(g.conn, format+"\n", args...); err != nil {
		g.t.Fatal(err)
	}
	if !g.lines.Scan() {
		g.t.Fatalf("no answer to %s: %v", fmt.Sprintf(format, args...), g.lines.Err())
	}
	if err := json.Unmarshal(g.lines.Bytes(), answer); err != nil {
		g.t.Fatalf("%s: %v", g.lines.Bytes(), err)
	}
}

type guestDisk struct {
	Name     string `json:"name"`
	Serial   string `json:"serial"`
	PCIPath  string `json:"pci_path"`
	Bytes    int64  `json:"bytes"`
	ReadOnly bool   `json:"read_only"`
}

func TestGuestIsReadyAndAnswers(t *testing.T) {
	m := boot(t, guestSpec(t))
	g := dial(t, m)
	var answer struct{ Echo string }
	g.ask(&answer, "echo hello")
	if answer.Echo != "hello" {
		t.Errorf("echo is %q", answer.Echo)
	}
	t.Logf("timings: %+v", m.Timings())

	content := sha256.Sum256([]byte(strings.Repeat("layer", 1<<20)))
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, []byte(strings.Repeat("layer", 1<<20))[:1<<20], 0o444); err != nil {
		t.Fatal(err)
	}
	content = sha256.Sum256([]byte(strings.Repeat("layer", 1<<20))[:1<<20])
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	at := time.Now()
	a, err := m.Attach(ctx, hypervisor.Disk{ID: "layers-1", Driver: hypervisor.DriverRaw, Path: path, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("attached at %s in %v", a.PCIPath, time.Since(at))
	var disks []guestDisk
	for {
		g.ask(&disks, "disks")
		if len(disks) > 0 {
			break
		}
	}
	t.Logf("%+v after %v", disks, time.Since(at))
	var sum struct{ SHA256 string }
	g.ask(&sum, "sum %s", disks[0].Name)
	if sum.SHA256 != hex.EncodeToString(content[:]) {
		t.Errorf("sum %s", sum.SHA256)
	}
	at = time.Now()
	if err := m.Detach(ctx, "layers-1"); err != nil {
		t.Fatal(err)
	}
	t.Logf("detached in %v", time.Since(at))
}
