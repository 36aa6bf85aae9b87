package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
	"github.com/erofsvm/erofsvm/test/need"
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
func guestSpec(t testing.TB) Spec {
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
func stoppedSpec(t testing.TB) Spec {
	t.Helper()
	s := guestSpec(t)
	s.stopped = true
	return s
}

// idleSpec is a VM that runs and does nothing, for what QEMU does only while it
// runs. (A real guest would not be the same with every QEMU: the emulation of 7.2
// gets cmpxchg16b wrong, on which a kernel of today rests, and it crashes.)
func idleSpec(t *testing.T, s Spec) Spec {
	t.Helper()
	// A bzImage of protocol 2.2 with one sector of set-up code (Linux,
	// Documentation/arch/x86/boot.rst), which is entered at 0x200.
	image := make([]byte, 4096)
	image[0x1f1] = 1                                    // sectors of set-up code behind the first
	copy(image[0x1fe:], []byte{0x55, 0xaa})             // boot flag
	copy(image[0x200:], []byte{0xeb, 0x7e})             // jmp 0x280
	copy(image[0x202:], "HdrS\x02\x02")                 // header, protocol
	image[0x211] = 1                                    // loaded high
	copy(image[0x22c:], []byte{0xff, 0xff, 0xff, 0x37}) // highest address of the initramfs
	copy(image[0x280:], []byte{0xfa, 0xf4, 0xeb, 0xfc}) // cli; hlt; jmp 0x280
	path := filepath.Join(t.TempDir(), "idle")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Kernel, s.stopped = path, false
	return s
}

// eachDriver runs a test of what must not depend on the kind of device.
func eachDriver(t *testing.T, test func(t *testing.T, spec func(Spec) Spec)) {
	for name, with := range map[string]func(Spec) Spec{
		"virtio-blk":  func(s Spec) Spec { s.BlockDriver, s.IOThreads = VirtioBlk, 2; return s },
		"virtio-scsi": func(s Spec) Spec { s.BlockDriver, s.IOThreads = VirtioSCSI, 2; return s },
	} {
		t.Run(name, func(t *testing.T) { test(t, with) })
	}
}

// eachQEMU runs a test of what QEMU decides with the oldest that is supported
// and with the current one, with a guest that never runs.
func eachQEMU(t *testing.T, test func(t *testing.T, spec Spec)) {
	tools := testguest.Find(t)
	for name, binary := range map[string]string{"current": tools.QEMU, "oldest": tools.OldestQEMU} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat(binary); err != nil {
				need.Missing(t, "test/setup/tools.sh has not installed it: %v", err)
			}
			spec := stoppedSpec(t)
			spec.Binary = binary
			test(t, spec)
		})
	}
}

// do executes a QMP command that must succeed.
func do(t *testing.T, m *Machine, command string, args map[string]any, result any) {
	t.Helper()
	var object any // a nil map would be sent as null
	if args != nil {
		object = args
	}
	if err := m.proc.monitor.Execute(within(t), command, object, result); err != nil {
		t.Fatal(err)
	}
}

// contents is what QEMU reads of a disk, which the guest would be shown.
func contents(t *testing.T, m *Machine, id string) []byte {
	t.Helper()
	dir := shortDir(t)
	socket, copied := filepath.Join(dir, "nbd"), filepath.Join(dir, "copy")
	do(t, m, "nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": socket}}}, nil)
	do(t, m, "block-export-add", map[string]any{"type": "nbd", "id": "export", "name": "disk", "node-name": "disk-" + id}, nil)
	cmd := exec.CommandContext(within(t), filepath.Join(filepath.Dir(m.spec.Binary), "qemu-img"),
		"convert", "-f", "raw", "-O", "raw", "nbd+unix:///disk?socket="+socket, copied)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	do(t, m, "nbd-server-stop", nil, nil) // and with it the export
	b, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wantContents fails unless a disk consists of these bytes, n times each.
func wantContents(t *testing.T, m *Machine, id string, n int, parts ...byte) {
	t.Helper()
	var want []byte
	for _, b := range parts {
		want = append(want, bytes.Repeat([]byte{b}, n)...)
	}
	if got := contents(t, m, id); !bytes.Equal(got, want) {
		t.Errorf("disk %s has %d bytes, beginning with %.8v, want %d with %v", id, len(got), got, len(want), parts)
	}
}

// openFiles counts the descriptors of QEMU, once nothing goes on behind an Attach.
func openFiles(t *testing.T, m *Machine) int {
	t.Helper()
	m.tasks.Wait()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// diskFiles are the regular files that QEMU has open, memory files included, each
// as often as it is. What devices have besides, such as event descriptors, comes
// when the guest's firmware or driver starts them.
func diskFiles(t *testing.T, m *Machine) []string {
	t.Helper()
	m.tasks.Wait()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil && strings.HasPrefix(name, "/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// wantDiskFiles wants QEMU to have the files open that it had before. It closes
// those of a device that has gone a while later (util/rcu.c, call_rcu_thread).
func wantDiskFiles(t *testing.T, m *Machine, before []string) {
	t.Helper()
	ctx := within(t)
	for {
		after := diskFiles(t, m)
		if slices.Equal(after, before) {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Errorf("QEMU has open %q, and had %q", after, before)
			return
		}
	}
}

var (
	initrdOnce sync.Once
	initrdPath string
)

// initrd builds the guest's initramfs once for all tests of the package.
func initrd(t testing.TB, tools testguest.Tools) string {
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
func shortDir(t testing.TB) string {
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

// attach plugs in a disk of 1 MiB, found by its path.
func attach(t *testing.T, m *Machine, id string, readOnly bool) hypervisor.Attachment {
	t.Helper()
	a, err := m.Attach(within(t), hypervisor.Disk{ID: id, Driver: hypervisor.DriverRaw, Path: image(t, id, 1), ReadOnly: readOnly})
	if err != nil {
		t.Error(err)
	}
	return a
}

// open opens a file that is closed at the end of the test.
func open(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
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
	m     *Machine
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
	return &guest{t: t, m: m, conn: conn, lines: bufio.NewScanner(conn)}
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

// does sends a line that asks for something to be done, and returns the error that
// the guest had with it.
func (g *guest) does(format string, args ...any) error {
	g.t.Helper()
	var answer struct{ Error string }
	if g.ask(&answer, format, args...); answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

// must is does without an error.
func (g *guest) must(format string, args ...any) {
	g.t.Helper()
	if err := g.does(format, args...); err != nil {
		g.t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

// guestDisk is a disk as the guest sees it.
type guestDisk struct {
	Name     string `json:"name"`
	Serial   string `json:"serial"`
	PCIPath  string `json:"pci_path"`
	SCSI     string `json:"scsi"`
	Bytes    int64  `json:"bytes"`
	ReadOnly bool   `json:"read_only"`
}

func (d guestDisk) place() hypervisor.Attachment {
	return hypervisor.Attachment{PCIPath: d.PCIPath, SCSI: d.SCSI}
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
	if len(found) != n {
		g.t.Fatalf("the guest has %d disks and not %d: %v%s", len(found), n, slices.Sorted(maps.Keys(found)), g.m.Tail())
	}
	return found
}
