package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/guest/storage"
)

func TestUpdateKeepsWhatIsNotSet(t *testing.T) {
	limit := int64(50)
	before := cgroups.Resources{
		Memory: 100, MemorySwap: 200, MemoryReservation: 10, CpuQuota: 5000, CpuPeriod: 10000, CpuShares: 512, CpuWeight: 20, PidsLimit: &limit,
		CpusetCpus: "0", BlkioWeight: 10, Freezer: cgroups.Frozen,
		BlkioThrottleReadBpsDevice: []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 0, 1), cgroups.NewThrottleDevice(8, 16, 2)},
		HugetlbLimit:               []*cgroups.HugepageLimit{{Pagesize: "2MB", Limit: 1}},
	}
	for name, c := range map[string]struct {
		r      *pb.LinuxResources
		change func(*cgroups.Resources)
	}{
		"nothing": {&pb.LinuxResources{}, func(*cgroups.Resources) {}},
		"empty":   {&pb.LinuxResources{Memory: &pb.LinuxMemory{}, CPU: &pb.LinuxCPU{}, Pids: &pb.LinuxPids{}, BlockIO: &pb.LinuxBlockIO{}}, func(*cgroups.Resources) {}},
		"devices": {&pb.LinuxResources{Devices: []*pb.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}, func(*cgroups.Resources) {}},
		"memory":  {&pb.LinuxResources{Memory: &pb.LinuxMemory{Limit: 150}}, func(r *cgroups.Resources) { r.Memory = 150 }},
		"no limit of memory": {&pb.LinuxResources{Memory: &pb.LinuxMemory{Limit: -1}}, func(r *cgroups.Resources) {
			r.Memory, r.MemorySwap = -1, 0
		}},
		"quota": {&pb.LinuxResources{CPU: &pb.LinuxCPU{Quota: -1}}, func(r *cgroups.Resources) { r.CpuQuota = -1 }},
		"shares": {&pb.LinuxResources{CPU: &pb.LinuxCPU{Shares: 1024, Cpus: "0-1", Mems: "0"}}, func(r *cgroups.Resources) {
			r.CpuShares, r.CpuWeight, r.CpusetCpus, r.CpusetMems = 1024, cgroups.ConvertCPUSharesToCgroupV2Value(1024), "0-1", "0"
		}},
		"pids": {&pb.LinuxResources{Pids: &pb.LinuxPids{Limit: 7}}, func(r *cgroups.Resources) { r.PidsLimit = set(int64(7)) }},
		"disks": {&pb.LinuxResources{BlockIO: &pb.LinuxBlockIO{
			ThrottleReadBpsDevice:   []*pb.LinuxThrottleDevice{{Major: 8, Minor: 16, Rate: 20}},
			ThrottleWriteIOPSDevice: []*pb.LinuxThrottleDevice{{Major: 8, Minor: 16, Rate: 30}},
			WeightDevice:            []*pb.LinuxWeightDevice{{Major: 8, Weight: 40}},
		}}, func(r *cgroups.Resources) {
			r.BlkioThrottleReadBpsDevice = []*cgroups.ThrottleDevice{r.BlkioThrottleReadBpsDevice[0], cgroups.NewThrottleDevice(8, 16, 20)}
			r.BlkioThrottleWriteIOPSDevice = []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 16, 30)}
			r.BlkioWeightDevice = []*cgroups.WeightDevice{cgroups.NewWeightDevice(8, 0, 40, 0)}
		}},
		"huge pages": {&pb.LinuxResources{HugepageLimits: []*pb.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 2}, {Pagesize: "2MB", Limit: 3}}}, func(r *cgroups.Resources) {
			r.HugetlbLimit = []*cgroups.HugepageLimit{{Pagesize: "2MB", Limit: 3}, {Pagesize: "1GB", Limit: 2}}
		}},
	} {
		got, want := before, before
		merge(&got, toResources(c.r))
		c.change(&want)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v\nwant %+v", name, got, want)
		}
	}
	if rate := before.BlkioThrottleReadBpsDevice[1].Rate; rate != 2 || before.HugetlbLimit[0].Limit != 1 || *before.PidsLimit != 50 {
		t.Error("the limits to go back to were changed as well")
	}
}

func TestChangesNeedTheirState(t *testing.T) {
	for _, state := range states {
		c := newContainer("c", newOOMQueue())
		c.state = state
		if state != Running {
			if err := c.pause(t.Context()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
				t.Errorf("pause of a container that is %s: %v", state, err)
			}
		}
		if state != Paused {
			if err := c.resume(t.Context()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
				t.Errorf("resume of a container that is %s: %v", state, err)
			}
		}
	}
	for _, state := range []State{Creating, Stopped, Removing, Pausing, Resuming} {
		c := newContainer("c", newOOMQueue())
		c.state = state
		if err := c.update(t.Context(), &pb.LinuxResources{}); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), string(state)) {
			t.Errorf("update of a container that is %s: %v", state, err)
		}
	}
	c := newContainer("c", newOOMQueue())
	if err := c.update(t.Context(), nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("update without resources: %v", err)
	}
	if _, err := c.stats(); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("statistics of a container that is being created: %v", err)
	}
	c.state, c.cgroup = Stopped, filepath.Join(t.TempDir(), "gone")
	if _, err := c.stats(); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("statistics of a container that is being removed: %v", err)
	}
}

func TestPauseWaitsForExecsOnTheirWay(t *testing.T) {
	c := newContainer("c", newOOMQueue())
	c.state = Running
	if err := c.reserveExec("e"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if c.State() != Running {
		t.Errorf("it was left %s", c.State())
	}
	c.state = Pausing
	if err := c.reserveExec("f"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("an exec that comes while it pauses: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- c.awaitStarting(t.Context()) }()
	c.execStarted("e", &process{}, true)
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestChangesComeOneAfterTheOther(t *testing.T) {
	c := newContainer("c", newOOMQueue())
	c.state = Running
	done, err := c.alone(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for name, err := range map[string]error{
		"pause": c.pause(ctx), "resume": c.resume(ctx), "update": c.update(ctx, &pb.LinuxResources{}),
	} {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s beside another: %v", name, err)
		}
	}
	done()
	if done, err = c.alone(t.Context()); err != nil {
		t.Error(err)
	}
	done()
}

func TestIDOfAnExecThatHasNothingMoreToTellIsFree(t *testing.T) {
	c := newContainer("c", newOOMQueue())
	c.state = Running
	for i := range 3 {
		if err := c.reserveExec("e"); err != nil {
			t.Fatalf("time %d: %v", i, err)
		}
		if err := c.reserveExec("e"); !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("while it starts: %v", err)
		}
		p := &process{exited: make(chan struct{})}
		c.execStarted("e", p, true)
		if err := c.reserveExec("e"); !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("while it runs: %v", err)
		}
		close(p.exited)
		c.execEnded("e")
		p.told.Store(true)
	}
	if err := c.reserveExec("e"); err != nil || len(c.execs) != 0 || len(c.finished) != 0 {
		t.Errorf("%v, %d, %d", err, len(c.execs), len(c.finished))
	}
	c.execStarted("e", nil, false)
	if _, err := c.process("e"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("an exec that did not start: %v", err)
	}
}

func TestStreamThatAProcessDoesNotHave(t *testing.T) {
	c := newContainer("c", newOOMQueue())
	c.state, c.init = Running, &process{terminal: true}
	m := NewManager(Dirs{}, storage.System{})
	m.containers["c"] = c
	if _, err := m.Stream(streamwire.Hello{Stream: streamwire.Stderr, Container: "c"}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
	for _, h := range []streamwire.Hello{{Container: "d"}, {Container: "c", Exec: "e"}} {
		if _, err := m.Stream(h); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%+v: %v", h, err)
		}
	}
}

func TestSysctlsOfNamespacesThatAreThePodsAreTheGuests(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/eth0.100/rp_filter", "kernel/shmmax", "fs/mqueue/msg_max"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte("0"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		text, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	spec := &specs.Spec{Linux: &specs.Linux{Sysctl: map[string]string{
		"net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.100/rp_filter": "2", "kernel.shmmax": "3", "fs.mqueue.msg_max": "4",
		"kernel.domainname": "6",
	}}}
	if err := setGuestSysctls(dir, spec); err != nil {
		t.Fatal(err)
	}
	if read("net/ipv4/ip_forward") != "1" || read("net/ipv4/conf/eth0.100/rp_filter") != "2" ||
		read("kernel/shmmax") != "3" || read("fs/mqueue/msg_max") != "4" {
		t.Error("they were not set")
	}
	if !reflect.DeepEqual(spec.Linux.Sysctl, map[string]string{"kernel.domainname": "6"}) {
		t.Errorf("libcontainer is left with %v", spec.Linux.Sysctl)
	}
	if sysctlPath("net.ipv4.conf.eth0/100.rp_filter") != "net/ipv4/conf/eth0.100/rp_filter" {
		t.Error("a dot in a name")
	}

	own := &specs.Spec{Linux: &specs.Linux{
		Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}},
		Sysctl:     map[string]string{"net.ipv4.ip_forward": "5", "kernel.shmmax": "5"},
	}}
	if err := setGuestSysctls(dir, own); err != nil || len(own.Linux.Sysctl) != 2 || read("net/ipv4/ip_forward") != "1" || read("kernel/shmmax") != "3" {
		t.Errorf("namespaces of its own: %v", err)
	}
	for _, bad := range []string{"net", "net.", "net..x", "net/../kernel/core_pattern", "net.ipv4//../x", "net/ipv4/", "net.ipv4\x00", "fs.mqueue..x"} {
		spec := &specs.Spec{Linux: &specs.Linux{Sysctl: map[string]string{bad: "1"}}}
		if err := setGuestSysctls(dir, spec); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
