package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/image"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/test/need"
)

// bootDeadline is for a guest without hardware virtualisation on a machine that
// does other things as well.
const bootDeadline = 3 * time.Minute

// tool returns what test/setup/tools.sh installed, and skips the test where it
// is not there.
func tool(t *testing.T, name string) string {
	t.Helper()
	path := toolPath(name)
	if !fileExists(path) {
		need.Missing(t, "run test/setup/tools.sh: no %s", path)
	}
	return path
}

// toolPath is where test/setup/tools.sh installs a tool.
func toolPath(name string) string {
	root := os.Getenv("EROFSVM_TOOLS")
	if root == "" {
		root = filepath.Join("..", "..", ".build", "tools")
	}
	path, err := filepath.Abs(filepath.Join(root, name))
	if err != nil {
		return name
	}
	return path
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func run(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// buildAgent builds the agent as the Makefile does for the guest image.
func buildAgent(t *testing.T, dir string) string {
	t.Helper()
	// go test takes an old result for one of today unless it saw the test look at
	// what has changed since; what the agent is made of is not in the test's own
	// binary.
	if err := filepath.WalkDir("../../guest", func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(dir, "erofsvm-agent")
	env := []string{"CGO_ENABLED=1", "CC=" + tool(t, "musl/bin/musl-gcc"), "PKG_CONFIG=" + tool(t, "seccomp/pkg-config")}
	run(t, env, "go", "build", "-trimpath", "-tags", "netgo osusergo seccomp",
		"-ldflags", "-s -w -funcalign=16 -extldflags -static -buildid=", "-o", agent, ".")
	return agent
}

// guest is a VM with the agent in it.
type guest struct {
	dir     string
	console string
	vsock   string // Unix socket of the VM's vsock
	monitor *monitor
	client  *agentclient.Client
	agent   pb.AgentServiceService // what the client has no method for
}

// startGuest boots the image with the agent, in a QEMU with options of the test
// besides, and connects to it. The end of the test ends it.
func startGuest(t *testing.T, options ...string) *guest {
	t.Helper()
	qemu := tool(t, "qemu/usr/bin/qemu-system-x86_64")
	daemon := tool(t, "vhost-device-vsock/usr/bin/vhost-device-vsock")
	kernel := tool(t, "kernel")

	g := &guest{dir: t.TempDir()}
	if _, err := image.Build(image.Options{KernelDir: kernel, Agent: buildAgent(t, g.dir), Output: g.dir}); err != nil {
		t.Fatal(err)
	}
	g.console = filepath.Join(g.dir, "console")
	g.vsock = filepath.Join(g.dir, "vsock")
	ready := listen(t, fmt.Sprintf("%s_%d", g.vsock, layout.PortReady))
	qmp := listen(t, filepath.Join(g.dir, "qmp"))

	device := filepath.Join(g.dir, "vhost")
	g.start(t, daemon, "--vm", "guest-cid=3,socket="+device+",uds-path="+g.vsock)
	awaitFile(t, device)
	began := time.Now()
	// One processor, as pods have by default: under TCG a second one can lose its
	// timer interrupts and stall the guest (seen in one of some ten boots).
	g.start(t, qemu, slices.Concat([]string{"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35,accel=tcg,memory-backend=ram", "-cpu", "max,la57=off", "-smp", "1,maxcpus=2", "-m", "512M,slots=1,maxmem=1G",
		"-object", "memory-backend-memfd,id=ram,size=512M,share=on",
		"-kernel", filepath.Join(g.dir, image.Kernel), "-initrd", filepath.Join(g.dir, image.Initrd),
		"-append", "console=ttyS0 panic=-1 quiet no_timer_check",
		"-serial", "file:" + g.console, "-qmp", "unix:" + filepath.Join(g.dir, "qmp"),
		"-chardev", "socket,id=vsock,path=" + device, "-device", "vhost-user-vsock-pci,chardev=vsock",
		"-device", "virtio-scsi-pci,id=scsi0,bus=pcie.0,addr=09,disable-legacy=on",
		"-device", "pci-bridge,id=bridge0,bus=pcie.0,addr=08,chassis_nr=1,shpc=off,mem-reserve=1M,pref64-reserve=1M"}, options)...)

	g.monitor = newMonitor(t, accept(t, qmp))
	_ = accept(t, ready).Close()
	t.Logf("QEMU exec to agent listening: %v", time.Since(began))
	g.client = agentclient.New(g.dial(t, layout.PortAgent), agentclient.DefaultDeadlines())
	bare := ttrpc.NewClient(g.dial(t, layout.PortAgent))
	g.agent = pb.NewAgentServiceClient(bare)
	t.Cleanup(func() {
		_ = bare.Close()
		_ = g.client.Close()
		<-g.client.Done()
	})
	if err := g.client.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("QEMU exec to first answer: %v", time.Since(began))
	return g
}

// start runs a program that ends with the test, or with this process.
func (g *guest) start(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			console, _ := os.ReadFile(g.console)
			t.Logf("%s said: %s\nconsole: %s", filepath.Base(name), stderr.String(), console)
		}
	})
}

// dial connects to a port of the guest, as vhost-device-vsock wants it.
func (g *guest) dial(t *testing.T, port uint32) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", g.vsock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "CONNECT %d\n", port)
	// A byte at a time: what follows the line belongs to the caller.
	var answer []byte
	for b := make([]byte, 1); !strings.HasSuffix(string(answer), "\n"); answer = append(answer, b[0]) {
		if _, err := conn.Read(b); err != nil {
			t.Fatalf("connect to port %d: %q: %v", port, answer, err)
		}
	}
	if !strings.HasPrefix(string(answer), "OK ") {
		t.Fatalf("connect to port %d: %q", port, answer)
	}
	_ = conn.SetDeadline(time.Time{})
	return conn
}

func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func accept(t *testing.T, l *net.UnixListener) net.Conn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(bootDeadline))
	conn, err := l.Accept()
	if err != nil {
		t.Fatalf("wait for %s: %v", l.Addr(), err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// awaitFile waits for the daemon's socket: it has no other way to say that it
// is there.
func awaitFile(t *testing.T, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s did not appear", path)
		}
	}
}

// monitor speaks just enough QMP to plug disks.
type monitor struct {
	conn net.Conn
	in   *bufio.Reader
}

func newMonitor(t *testing.T, conn net.Conn) *monitor {
	t.Helper()
	m := &monitor{conn: conn, in: bufio.NewReader(conn)}
	if _, err := m.in.ReadBytes('\n'); err != nil {
		t.Fatal(err)
	}
	m.do(t, "qmp_capabilities", map[string]any{})
	return m
}

func (m *monitor) do(t *testing.T, command string, args map[string]any) json.RawMessage {
	t.Helper()
	request, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.conn.Write(append(request, '\n')); err != nil {
		t.Fatal(err)
	}
	for {
		line, err := m.in.ReadBytes('\n')
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		var reply map[string]json.RawMessage
		if err := json.Unmarshal(line, &reply); err != nil {
			t.Fatalf("%s: %s: %v", command, line, err)
		}
		if _, isEvent := reply["event"]; isEvent {
			continue
		}
		if reply["error"] != nil {
			t.Fatalf("%s: %s", command, line)
		}
		return reply["return"]
	}
}

// plug attaches a file as a disk in a slot of the bridge. Its PCI path is then
// "08/" and the slot.
func (g *guest) plug(t *testing.T, slot int, file string, readOnly bool) {
	t.Helper()
	id := fmt.Sprintf("disk%d", slot)
	g.addNode(t, id, file, readOnly)
	g.monitor.do(t, "device_add", map[string]any{
		"driver": "virtio-blk-pci", "id": id, "drive": id, "serial": id, "bus": "bridge0", "addr": fmt.Sprintf("%02x", slot), "disable-legacy": "on",
	})
}

// plugSCSI attaches a file as a unit of the SCSI controller.
func (g *guest) plugSCSI(t *testing.T, target, unit int, file string, readOnly bool) {
	t.Helper()
	id := fmt.Sprintf("unit%d-%d", target, unit)
	g.addNode(t, id, file, readOnly)
	g.monitor.do(t, "device_add", map[string]any{
		"driver": "scsi-hd", "id": id, "drive": id, "serial": id, "bus": "scsi0.0", "channel": 0, "scsi-id": target, "lun": unit,
	})
}

func (g *guest) addNode(t *testing.T, id, file string, readOnly bool) {
	t.Helper()
	g.monitor.do(t, "blockdev-add", map[string]any{
		"driver": "raw", "node-name": id, "read-only": readOnly,
		"file": map[string]any{"driver": "file", "filename": file, "read-only": readOnly},
	})
}

// log returns what the agent has written to its log so far.
func (g *guest) log(t *testing.T) string {
	t.Helper()
	conn := g.dial(t, layout.PortLog)
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	text, err := io.ReadAll(conn)
	if err != nil && !os.IsTimeout(err) {
		t.Fatal(err)
	}
	return string(text)
}
