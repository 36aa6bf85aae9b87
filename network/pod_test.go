package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// space is a network namespace of the test.
type space struct {
	file *os.File
	*netlink.Handle
}

func newSpace(t *testing.T) space {
	t.Helper()
	need.Root(t, "to make a network namespace")
	var s space
	if err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if s.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		s.Handle, err = netlink.NewHandle()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		s.file.Close()
	})
	return s
}

// path leads to the namespace as long as the test runs.
func (s space) path() string { return fmt.Sprintf("/proc/self/fd/%d", s.file.Fd()) }

func (s space) link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := s.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

// names are those of all interfaces but lo.
func (s space) names(t *testing.T) string {
	t.Helper()
	links, err := s.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		switch l.Attrs().Name {
		case "lo", "tunl0", "sit0", "ip6tnl0", "ip_vti0", "ip6_vti0", "gre0", "gretap0", "erspan0", "ip6gre0":
		default:
			names = append(names, l.Attrs().Name)
		}
	}
	return strings.Join(names, " ")
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// pod is a namespace as CNI's bridge plugin leaves it, with the one at the other
// end of its interfaces.
type pod struct {
	space
	outside space
}

func newPod(t *testing.T) pod { return pod{newSpace(t), newSpace(t)} }

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

// plug gives the pod an interface, whose other end "out-NAME" is at a bridge
// outside.
func (p pod) plug(t *testing.T, name string, hw net.HardwareAddr, mtu int, addresses ...string) netlink.Link {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br-" + name}}
	must(t, "bridge", p.outside.LinkAdd(bridge))
	must(t, "veth", p.outside.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "out-" + name, MTU: mtu, MasterIndex: bridge.Index},
		PeerName:  name, PeerHardwareAddr: hw, PeerNamespace: netlink.NsFd(int(p.file.Fd())),
	}))
	must(t, "bridge up", p.outside.LinkSetUp(bridge))
	must(t, "veth up", p.outside.LinkSetUp(p.outside.link(t, "out-"+name)))
	inner := p.link(t, name)
	must(t, "mtu", p.LinkSetMTU(inner, mtu))
	must(t, "up", p.LinkSetUp(inner))
	for _, a := range addresses {
		p.addr(t, name, a)
	}
	return p.link(t, name)
}

func (p pod) addr(t *testing.T, name, address string) {
	t.Helper()
	a, err := netlink.ParseAddr(address)
	must(t, address, err)
	a.Flags = unix.IFA_F_NODAD
	must(t, address, p.AddrAdd(p.link(t, name), a))
}

func (p pod) addRoute(t *testing.T, name string, r netlink.Route) {
	t.Helper()
	r.LinkIndex = p.link(t, name).Attrs().Index
	must(t, r.String(), p.RouteAdd(&r))
}

func (p pod) open(t *testing.T) *Namespace {
	t.Helper()
	n, err := Open(p.path())
	must(t, "open", err)
	t.Cleanup(n.Close)
	return n
}

func cidr(t *testing.T, s string) *net.IPNet {
	t.Helper()
	ip, n, err := net.ParseCIDR(s)
	must(t, s, err)
	n.IP = ip.Mask(n.Mask)
	return n
}

// wire is a socket that sees and sends the frames of one interface.
type wire struct{ fd int }

func (s space) wire(t *testing.T, name string) wire {
	t.Helper()
	index := s.link(t, name).Attrs().Index
	var w wire
	must(t, "packet socket", onThread(func() (err error) {
		if err = unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		native := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: native, Ifindex: index})
	}))
	must(t, "timeout", unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}))
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w wire) send(t *testing.T, frame []byte) {
	t.Helper()
	_, err := unix.Write(w.fd, frame)
	must(t, "send", err)
}

// expect reads until frame comes, and returns what came before it.
func (w wire) expect(t *testing.T, frame []byte) (before [][]byte) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		n, err := unix.Read(w.fd, buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		must(t, "receive", err)
		if bytes.Equal(buf[:n], frame) {
			return before
		}
		before = append(before, bytes.Clone(buf[:n]))
	}
	t.Fatalf("frame % x… has not come", frame[:14])
	return nil
}

// header is that of virtio-net without mergeable buffers, which a tap begins
// with (IFF_VNET_HDR).
const header = 10

func sendTap(t *testing.T, f *os.File, frame []byte) {
	t.Helper()
	_, err := f.Write(append(make([]byte, header), frame...))
	must(t, "write to the tap", err)
}

// expectTap reads all queues until frame comes from one.
func expectTap(t *testing.T, queues []*os.File, frame []byte) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	buf := make([]byte, 64<<10)
	for time.Now().Before(deadline) {
		var polled []unix.PollFd
		for _, q := range queues {
			polled = append(polled, unix.PollFd{Fd: int32(q.Fd()), Events: unix.POLLIN})
		}
		if n, err := unix.Poll(polled, 1000); n <= 0 && !errors.Is(err, unix.EINTR) {
			continue
		}
		for _, p := range polled {
			if p.Revents == 0 {
				continue
			}
			n, err := unix.Read(int(p.Fd), buf)
			must(t, "read the tap", err)
			if n >= header && bytes.Equal(buf[header:n], frame) {
				return
			}
		}
	}
	t.Fatalf("frame % x… has not come", frame[:14])
}

// frame is an Ethernet frame of a protocol that no kernel answers.
func frame(to, from net.HardwareAddr, payload int) []byte {
	f := append(bytes.Clone(to), from...)
	f = append(f, 0x88, 0xb5) // for experiments (IEEE 802)
	for i := range payload {
		f = append(f, byte(i))
	}
	return f
}

// notANamespace are paths that lead to none.
func notANamespace(t *testing.T) map[string]string {
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	must(t, "file", os.WriteFile(file, nil, 0o600))
	must(t, "fifo", unix.Mkfifo(fifo, 0o600))
	return map[string]string{
		"nothing": filepath.Join(dir, "none"), "a file": file, "a fifo": fifo, "a directory": dir,
		"another kind": "/proc/self/ns/mnt", "the end of a process": fmt.Sprintf("/proc/%d/ns/net", 1<<30),
	}
}
