package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/test/need"
)

// cniNetNS is a network namespace to which the test does what CNI does.
type cniNetNS struct {
	file *os.File
	*netlink.Handle
}

func newNetNS(t *testing.T) cniNetNS {
	t.Helper()
	need.Root(t, "to make a network namespace")
	var ns cniNetNS
	made := make(chan error, 1)
	thread := func(locked chan struct{}) {
		runtime.LockOSThread() // and the thread ends with the goroutine
		if locked != nil {
			close(locked)
		}
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			ns.file, err = os.Open("/proc/thread-self/ns/net")
		}
		if err == nil {
			ns.Handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		}
		made <- err
	}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			thread(nil)
			return
		}
		locked := make(chan struct{}) // the main thread does not end: another one
		go thread(locked)
		<-locked
		runtime.UnlockOSThread()
	}()
	must(t, "make a namespace", <-made)
	t.Cleanup(func() {
		ns.Close()
		ns.file.Close()
	})
	return ns
}

func (ns cniNetNS) path() string { return fmt.Sprintf("/proc/self/fd/%d", ns.file.Fd()) }

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// plug adds an interface with an address and a default route.
func (ns cniNetNS) plug(t *testing.T, name string, last byte, address, gateway string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = name, net.HardwareAddr{2, 0, 0, 0, 0, last}, 1450
	must(t, "veth", ns.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer" + name}))
	link, err := ns.LinkByName(name)
	must(t, name, err)
	must(t, "up", ns.LinkSetUp(link))
	ns.address(t, name, address)
	if gateway != "" {
		must(t, "route", ns.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}))
	}
}

func (ns cniNetNS) address(t *testing.T, name, address string) {
	t.Helper()
	link, err := ns.LinkByName(name)
	must(t, name, err)
	a, err := netlink.ParseAddr(address)
	must(t, address, err)
	must(t, address, ns.AddrAdd(link, a))
}

// ours are the devices that a sandbox made there.
func (ns cniNetNS) ours(t *testing.T) (names []string) {
	t.Helper()
	links, err := ns.LinkList()
	must(t, "list", err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "erofsvm") {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

func specIn(path string) string {
	return fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{"namespaces":[{"type":"network","path":%q}]}}`, path)
}

// networkCalls are what the agent was told of the network, up to the container.
func (w *world) networkCalls() []string {
	return slices.DeleteFunc(w.agent.made(), func(c string) bool {
		return !strings.HasPrefix(c, "Update") && !strings.HasPrefix(c, "AddARP") && !strings.HasPrefix(c, "Create") && !strings.HasPrefix(c, "Start")
	})
}

func wantNetwork(t *testing.T, w *world, want ...string) {
	t.Helper()
	if got := w.networkCalls(); !slices.Equal(got, want) {
		t.Errorf("calls\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestGuestHasTheNetworkBeforeTheContainer(t *testing.T) {
	ns := newNetNS(t)
	ns.plug(t, "eth0", 1, "10.1.0.5/24", "10.1.0.1")
	ns.plug(t, "net1", 2, "10.2.0.5/24", "")
	link, err := ns.LinkByName("eth0")
	must(t, "eth0", err)
	must(t, "neighbour", ns.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP("10.1.0.9"), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: netlink.NUD_PERMANENT}))
	w := newWorld(t, newFakeAgent())
	if _, err := w.Create(t.Context(), w.request(t, "c", specIn(ns.path()))); err != nil {
		t.Fatal(err)
	}
	wantNetwork(t, w,
		"UpdateInterface eth0 02:00:00:00:00:01 at 08/01 1450 [10.1.0.5/24]",
		"UpdateInterface net1 02:00:00:00:00:02 at 08/01 1450 [10.2.0.5/24]",
		"UpdateRoutes [ via 10.1.0.1 dev eth0]",
		"AddARPNeighbors [10.1.0.9 02:00:00:00:00:09 dev eth0]",
		"CreateSandbox", "CreateContainer c")
	if want := []string{"02:00:00:00:00:01 mtu 1450, 1 queues", "02:00:00:00:00:02 mtu 1450, 1 queues"}; !slices.Equal(w.vm.nics, want) {
		t.Errorf("interfaces of the VM %q", w.vm.nics)
	}
	if _, err := w.Create(t.Context(), newWorld(t, newFakeAgent()).request(t, "other", specIn(ns.path()))); err != nil {
		t.Errorf("another container of the pod: %v", err)
	}
	must(t, "close", w.Close(t.Context()))
	if left := ns.ours(t); len(left) > 0 {
		t.Errorf("devices are left: %q", left)
	}
}

// ctr run --cni makes the network in the namespace of the task that it created.
func TestGuestFollowsWhatComesLater(t *testing.T) {
	ns := newNetNS(t)
	w := newWorld(t, newFakeAgent())
	if _, err := w.Create(t.Context(), w.request(t, "c", specIn(ns.path()))); err != nil {
		t.Fatal(err)
	}
	ns.plug(t, "eth0", 1, "10.1.0.5/24", "10.1.0.1")
	if _, err := w.Start(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	calls := w.networkCalls()
	started := slices.Index(calls, "StartContainer c")
	told := slices.Index(calls, "UpdateInterface eth0 02:00:00:00:00:01 at 08/01 1450 [10.1.0.5/24]")
	if told < 0 || started < told {
		t.Errorf("calls %q", calls)
	}
	held, release := w.agent.holding("UpdateInterface")
	ns.address(t, "eth0", "10.1.0.6/24")
	select {
	case <-held:
	case <-time.After(20 * time.Second):
		t.Fatalf("the guest is not told: %q", w.networkCalls())
	}
	release()
	calls = w.networkCalls()
	if want := "UpdateInterface eth0 02:00:00:00:00:01 at 08/01 1450 [10.1.0.5/24 10.1.0.6/24]"; !slices.Contains(calls, want) {
		t.Errorf("calls %q, want %q among them", calls, want)
	}
}

func TestSandboxWithoutANetworkHasLoopbackAlone(t *testing.T) {
	ns := newNetNS(t)
	ns.plug(t, "eth0", 1, "10.1.0.5/24", "10.1.0.1")
	for name, spec := range map[string]string{
		"the host's":    "",
		"a new one":     specIn(""),
		"model is none": specIn(ns.path()),
	} {
		w := newWorld(t, newFakeAgent())
		if name == "model is none" {
			w.config.Network.Model = modelNone
		}
		if _, err := w.Create(t.Context(), w.request(t, "c", spec)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wantNetwork(t, w, "CreateSandbox", "CreateContainer c")
		if len(w.vm.nics) > 0 {
			t.Errorf("%s: interfaces %q", name, w.vm.nics)
		}
		must(t, "close", w.Close(t.Context()))
	}
}

// TestTheHostsNetworkIsRefusedToPods with an error for people who read their events.
func TestTheHostsNetworkIsRefusedToPods(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	w.config.Network.Host = configs.HostNetworkRefuse
	_, create := w.Create(t.Context(), w.request(t, "pod", strings.Replace(infraSpec, `,{"type":"network"}`, "", 1)))
	must(t, "pod", w.CreatePod(&PodRequest{ID: "pod", Bundle: w.request(t, "pod", "").Bundle, Config: w.config, HostNetwork: true}))
	_, start := w.StartPod(t.Context(), "pod")
	for _, err := range []error{create, start} {
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "hostNetwork") || !strings.Contains(err.Error(), "network.host") {
			t.Errorf("%v", err)
		}
	}
	if w.starts > 0 {
		t.Errorf("%d VMs started", w.starts)
	}
	alone := newWorld(t, newFakeAgent())
	alone.config.Network.Host = configs.HostNetworkRefuse
	if _, err := alone.Create(t.Context(), alone.request(t, "c", "")); err != nil || len(alone.vm.nics) > 0 {
		t.Errorf("a container of no pod: %v, interfaces %q", err, alone.vm.nics)
	}
}

func TestNamespaceThatCannotBeTakenFailsTheCreate(t *testing.T) {
	ns := newNetNS(t)
	ns.plug(t, "eth0", 1, "10.1.0.5/24", "")
	first := newWorld(t, newFakeAgent())
	if _, err := first.Create(t.Context(), first.request(t, "c", specIn(ns.path()))); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		"/proc/self/ns/net": errdefs.ErrInvalidArgument,
		"/no/such/netns":    errdefs.ErrNotFound,
		"/dev/null":         errdefs.ErrNotFound,
		ns.path():           errdefs.ErrFailedPrecondition,
	} {
		w := newWorld(t, newFakeAgent())
		if _, err := w.Create(t.Context(), w.request(t, "c", specIn(path))); !errors.Is(err, want) || w.starts > 0 {
			t.Errorf("%s: %v, %d VMs started", path, err, w.starts)
		}
	}
}

func TestAgentThatCannotConfigureFailsTheCreateAndLeavesNothing(t *testing.T) {
	ns := newNetNS(t)
	ns.plug(t, "eth0", 1, "10.1.0.5/24", "10.1.0.1")
	for _, method := range []string{"UpdateInterface", "UpdateRoutes"} {
		w := newWorld(t, newFakeAgent())
		w.agent.failing(method, errdefs.ErrNotImplemented)
		if _, err := w.Create(t.Context(), w.request(t, "c", specIn(ns.path()))); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", method, err)
		}
		if left := ns.ours(t); len(left) > 0 {
			t.Errorf("%s: devices are left: %q", method, left)
		}
	}
}

// What a killed shim's macvtap leaves does not go by itself.
func TestCleanupRemovesDevicesFromTheNamespace(t *testing.T) {
	ns := newNetNS(t)
	ns.plug(t, "eth0", 1, "10.1.0.5/24", "")
	link, err := ns.LinkByName("eth0")
	must(t, "eth0", err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = fmt.Sprintf("erofsvm%d", link.Attrs().Index), link.Attrs().Index
	must(t, "macvtap", ns.LinkAdd(&netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_PASSTHRU}}))
	bundle := t.TempDir()
	must(t, "record", writeRecord(bundle, record{NetNS: ns.path()}))
	_, err = Cleanup(t.Context(), bundle)
	must(t, "cleanup", err)
	if left := ns.ours(t); len(left) > 0 || exists(t, bundle+"/"+recordName) {
		t.Errorf("devices %q or the record are left", left)
	}
}
