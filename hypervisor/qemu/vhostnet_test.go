//go:build vhostvsock

package qemu

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// netInitrd is an initramfs whose guest can have a network.
func netInitrd(t *testing.T, tools testguest.Tools) string {
	t.Helper()
	if path := os.Getenv(initrdVar); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "net.cpio")
	testguest.Initramfs(t, tools, path, testguest.Content{
		Init: testguest.BuildInit(t, t.TempDir()), Modules: append(testguest.BootModules[:len(testguest.BootModules):len(testguest.BootModules)], "kernel/drivers/net/virtio_net.ko"),
	})
	return path
}

// frameType is that of the test guest's frames.
const frameType = 0x88b5

// listened are two queues of a tap device, and a socket for the frames on it.
type listened struct {
	queues []*os.File
	socket int
}

func listen(t *testing.T) listened {
	t.Helper()
	var l listened
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the namespace is the queues' and the socket's then
		failed <- l.open()
	}()
	err := <-failed
	t.Cleanup(func() {
		for _, q := range l.queues {
			q.Close()
		}
		if l.socket > 0 {
			unix.Close(l.socket)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// open is called on a thread that it may spoil.
func (l *listened) open() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	request, err := unix.NewIfreq("tap0")
	if err != nil {
		return err
	}
	for range 2 {
		f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		l.queues = append(l.queues, f)
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
		if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, request); err != nil {
			return err
		}
	}
	const protocol = frameType>>8 | frameType&0xff<<8
	if l.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol); err != nil {
		return err
	}
	wait := unix.NsecToTimeval(int64(200 * time.Millisecond)) // and then answer looks at its context
	if err := unix.SetsockoptTimeval(l.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(l.socket, unix.SIOCSIFFLAGS, request); err != nil {
		return err
	}
	link, err := net.InterfaceByName("tap0")
	if err != nil {
		return err
	}
	return unix.Bind(l.socket, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index})
}

// answer answers each frame with another text, until ctx ends.
func (l listened) answer(ctx context.Context, text string) {
	buf := make([]byte, 256)
	for ctx.Err() == nil {
		n, err := unix.Read(l.socket, buf)
		if err != nil || n < 14 || bytes.Contains(buf[:n], []byte(text)) {
			continue
		}
		frame := append(append(bytes.Clone(buf[6:12]), 2, 0, 0, 0, 0, 9), buf[12:14]...)
		frame = fmt.Appendf(frame, "%-46s", text)
		if _, err := unix.Write(l.socket, frame); err != nil {
			return
		}
	}
}

// kernelNet has frames go both ways through an interface of two queues that the host's
// kernel serves.
func kernelNet(t *testing.T) {
	spec := guestSpec(t)
	spec.Initrd = netInitrd(t, testguest.Find(t))
	spec.Vsock, spec.VsockDaemon = vsock.Auto, ""
	spec.DiskSlots, spec.NICSlots, spec.VCPUs = 1, 1, 2
	m := start(t, spec)
	l := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	var answering sync.WaitGroup
	answering.Go(func() { l.answer(ctx, "from-the-host") })
	defer answering.Wait()
	defer cancel()

	n := hypervisor.NIC{ID: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1500, Queues: l.queues}
	for range l.queues {
		f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n.Vhost = append(n.Vhost, f)
	}
	if _, err := m.AttachNIC(within(t), n); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitReady(within(t)); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Said   string
		Queues int
		Error  string
	}
	dial(t, m).ask(&got, "frames %s from-the-guest", n.MAC)
	if got.Said != "from-the-host" || got.Queues != 2 {
		t.Errorf("the guest says %+v, want an answer and 2 queues", got)
	}
	// A thread of the kernel's for each queue, in QEMU's process (kernel/vhost_task.c).
	if workers := vhostThreads(t, m.Pid()); workers < 2 {
		t.Errorf("%d threads of vhost serve QEMU, want one for each queue", workers)
	}
	if err := m.DetachNIC(within(t), n.ID); err != nil {
		t.Error(err)
	}
}

func vhostThreads(t *testing.T, pid int) int {
	t.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, path := range names {
		if name, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(name), "vhost-") {
			count++
		}
	}
	return count
}
