package container

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

var update = flag.Bool("update", false, "write the golden files anew")

// wireSpec has a value in every field that is translated.
func wireSpec() *pb.Spec {
	return &pb.Spec{
		Version: "1.1.0", Hostname: "host", Root: &pb.Root{Path: "/b/c/rootfs", Readonly: true},
		Annotations: map[string]string{"key": "value"},
		Process: &pb.Process{
			Terminal: true, ConsoleSize: &pb.Box{Height: 24, Width: 80}, Args: []string{"/bin/sh", "-c", "true"}, Env: []string{"A=b"}, Cwd: "/tmp",
			User:            &pb.User{UID: 1, GID: 2, AdditionalGids: []uint32{3, 4}, Username: "user"},
			Capabilities:    &pb.LinuxCapabilities{Bounding: []string{"CAP_A"}, Effective: []string{"CAP_B"}, Inheritable: []string{"CAP_C"}, Permitted: []string{"CAP_D"}, Ambient: []string{"CAP_E"}},
			Rlimits:         []*pb.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 20, Soft: 10}},
			NoNewPrivileges: true, ApparmorProfile: "profile", OOMScoreAdj: -5, SelinuxLabel: "label",
		},
		Mounts: []*pb.Mount{{Destination: "/proc", Source: "proc", Type: "proc", Options: []string{"nosuid"}}},
		Hooks: &pb.Hooks{
			Prestart: []*pb.Hook{{Path: "/1", Args: []string{"1"}, Env: []string{"X=1"}, Timeout: 5}}, Poststart: []*pb.Hook{{Path: "/2"}}, Poststop: []*pb.Hook{{Path: "/3"}},
			CreateRuntime: []*pb.Hook{{Path: "/4"}}, CreateContainer: []*pb.Hook{{Path: "/5"}}, StartContainer: []*pb.Hook{{Path: "/6"}},
		},
		Linux: &pb.Linux{
			UIDMappings: []*pb.LinuxIDMapping{{HostID: 1000, ContainerID: 0, Size: 10}}, GIDMappings: []*pb.LinuxIDMapping{{HostID: 2000, ContainerID: 0, Size: 20}},
			Sysctl: map[string]string{"net.ipv4.ip_forward": "1"}, CgroupsPath: "/k8s/c", RootfsPropagation: "rslave",
			Namespaces:  []*pb.LinuxNamespace{{Type: "pid"}, {Type: "ipc", Path: "/proc/1/ns/ipc"}},
			Devices:     []*pb.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 3, FileMode: 0o600, UID: 5, GID: 6}},
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"}, MountLabel: "mount", IntelRdt: &pb.LinuxIntelRdt{L3CacheSchema: "L3:0=f"},
			Resources: &pb.LinuxResources{
				Devices: []*pb.LinuxDeviceCgroup{
					{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Major: 1, Minor: 0, Access: "r"}, {Allow: true, Type: "c", Major: 136, Minor: -1, Access: "rwm"},
				},
				Memory: &pb.LinuxMemory{Limit: 1, Reservation: 2, Swap: 3, Kernel: 4, KernelTCP: 5, Swappiness: 6, DisableOOMKiller: true},
				CPU:    &pb.LinuxCPU{Shares: 1, Quota: 2, Period: 3, RealtimeRuntime: 4, RealtimePeriod: 5, Cpus: "0-1", Mems: "0"},
				Pids:   &pb.LinuxPids{Limit: 100},
				BlockIO: &pb.LinuxBlockIO{
					Weight: 10, LeafWeight: 20, WeightDevice: []*pb.LinuxWeightDevice{{Major: 8, Minor: 0, Weight: 30, LeafWeight: 40}},
					ThrottleReadBpsDevice: []*pb.LinuxThrottleDevice{{Major: 8, Minor: 1, Rate: 1}}, ThrottleWriteBpsDevice: []*pb.LinuxThrottleDevice{{Major: 8, Minor: 2, Rate: 2}},
					ThrottleReadIOPSDevice: []*pb.LinuxThrottleDevice{{Major: 8, Minor: 3, Rate: 3}}, ThrottleWriteIOPSDevice: []*pb.LinuxThrottleDevice{{Major: 8, Minor: 4, Rate: 4}},
				},
				HugepageLimits: []*pb.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 9}},
				Network:        &pb.LinuxNetwork{ClassID: 7, Priorities: []*pb.LinuxInterfacePriority{{Name: "eth0", Priority: 8}}},
			},
		},
	}
}

func TestSpecIsTranslatedInFull(t *testing.T) {
	spec, err := toSpec(wireSpec(), "c", "/b/c/rootfs")
	if err != nil {
		t.Fatal(err)
	}
	spec.Linux.Seccomp = toSeccomp(&pb.LinuxSeccomp{
		DefaultAction: "SCMP_ACT_ERRNO", Architectures: []string{"SCMP_ARCH_X86_64"}, Flags: []string{"SECCOMP_FILTER_FLAG_LOG"},
		Syscalls: []*pb.LinuxSyscall{{Names: []string{"read"}, Action: "SCMP_ACT_ALLOW", ErrnoRet: &pb.LinuxSyscall_Errnoret{Errnoret: 1}, Args: []*pb.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: "SCMP_CMP_EQ"}}}},
	})
	got, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/spec.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("the specification is not that of %s (-update writes it):\n%s", golden, got)
	}
}

func TestZeroMeansNotSet(t *testing.T) {
	r := toResources(&pb.LinuxResources{Memory: &pb.LinuxMemory{}, CPU: &pb.LinuxCPU{}, Pids: &pb.LinuxPids{}})
	text, err := json.Marshal(r)
	if err != nil || string(text) != `{"memory":{},"cpu":{},"pids":{}}` {
		t.Errorf("%s, %v", text, err)
	}
}

func TestSpecThatCannotBeHadIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*pb.Spec)
		class  error
		says   string
	}{
		"other root":      {func(s *pb.Spec) { s.Root.Path = "/" }, errdefs.ErrInvalidArgument, "want /b/c/rootfs"},
		"no root":         {func(s *pb.Spec) { s.Root = nil }, errdefs.ErrInvalidArgument, "OCI.Root.Path"},
		"no linux":        {func(s *pb.Spec) { s.Linux = nil }, errdefs.ErrInvalidArgument, "OCI.Linux"},
		"no process":      {func(s *pb.Spec) { s.Process = nil }, errdefs.ErrInvalidArgument, "OCI.Process"},
		"no program":      {func(s *pb.Spec) { s.Process.Args = nil }, errdefs.ErrInvalidArgument, "Args"},
		"relative cwd":    {func(s *pb.Spec) { s.Process.Cwd = "tmp" }, errdefs.ErrInvalidArgument, "Cwd"},
		"unknown limit":   {func(s *pb.Spec) { s.Process.Rlimits[0].Type = "RLIMIT_X" }, errdefs.ErrInvalidArgument, "RLIMIT_X"},
		"windows":         {func(s *pb.Spec) { s.Windows = &pb.Windows{} }, errdefs.ErrInvalidArgument, "Windows"},
		"seccomp profile": {func(s *pb.Spec) { s.Linux.Seccomp = &pb.LinuxSeccomp{} }, errdefs.ErrNotImplemented, "seccomp"},
	} {
		t.Run(name, func(t *testing.T) {
			if SupportsSeccomp && c.class == errdefs.ErrNotImplemented {
				t.Skip("built with the tag seccomp")
			}
			s := proto.CloneOf(wireSpec())
			c.change(s)
			_, err := toSpec(s, "c", "/b/c/rootfs")
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestCgroupsPathIsAbsolute(t *testing.T) {
	for path, want := range map[string]string{
		"": "/containers/c", "/k8s.io/c": "/k8s.io/c", "default/c": "/default/c", "system.slice:cri:c": "/containers/c", "/a/../../../b": "/b", "/": "/containers/c", "../..": "/containers/c",
	} {
		if got := cgroupsPath(path, "c"); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

// FuzzSpec: whatever bytes the host sends as a specification, the agent answers.
func FuzzSpec(f *testing.F) {
	seed, err := proto.Marshal(wireSpec())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var s pb.Spec
		if proto.Unmarshal(data, &s) == nil {
			_, _ = toSpec(&s, "c", "/b/c/rootfs")
		}
	})
}
