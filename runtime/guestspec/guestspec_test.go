package guestspec

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "write the golden files anew")

func load(t *testing.T, name string) *specs.Spec {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// TestGolden compares the guest's spec and what was dropped, field by field,
// with testdata/<name>.golden.
func TestGolden(t *testing.T) {
	for _, name := range []string{"ctr", "everything", "host"} {
		t.Run(name, func(t *testing.T) {
			host := load(t, name+".json")
			before, _ := json.Marshal(host)
			r, err := Convert(host, Options{
				Bundle: "/bundle", Rootfs: "/run/kata-containers/c1/rootfs",
				Copies: "/run/kata-containers/shared/containers/c1", PassHooks: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			if after, _ := json.Marshal(host); !bytes.Equal(before, after) {
				t.Error("the host's spec was changed")
			}
			raw, err := protojson.Marshal(r.Spec)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := json.Indent(&got, raw, "", "  "); err != nil { // protojson's own indent varies on purpose
				t.Fatal(err)
			}
			for _, c := range r.Copies {
				fmt.Fprintf(&got, "\ncopy: %s to %s for %s, read-only %v", c.Source, c.Guest, c.Destination, c.ReadOnly)
			}
			for _, h := range []struct {
				when  string
				hooks []specs.Hook
			}{{"create", r.Hooks.Create}, {"poststart", r.Hooks.Poststart}, {"poststop", r.Hooks.Poststop}} {
				for _, hook := range h.hooks {
					fmt.Fprintf(&got, "\non the host, %s: %s %q", h.when, hook.Path, hook.Args)
				}
			}
			for _, d := range r.Dropped {
				got.WriteString("\ndropped: " + d)
			}
			got.WriteByte('\n')
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("differs from %s (run with -update and look at the diff):\n%s", golden, got.Bytes())
			}
		})
	}
}

func TestRefusalsNameTheField(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*specs.Spec)
		class  func(error) bool
		text   string
	}{
		{"no process", func(s *specs.Spec) { s.Process = nil }, errdefs.IsInvalidArgument, "process"},
		{"no args", func(s *specs.Spec) { s.Process.Args = nil }, errdefs.IsInvalidArgument, "process.args"},
		{"relative cwd", func(s *specs.Spec) { s.Process.Cwd = "tmp" }, errdefs.IsInvalidArgument, "process.cwd"},
		{"hook of the guest", func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/x"}}}
		}, errdefs.IsNotImplemented, `guest.hooks = "pass"`},
		{"hook by a relative path", func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "x"}}}
		}, errdefs.IsInvalidArgument, "hooks.poststop"},
		{"hook without time", func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/x", Timeout: new(int)}}}
		}, errdefs.IsInvalidArgument, "timeout 0"},
		{"bind mount without a source", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind"})
		}, errdefs.IsInvalidArgument, "/data"},
		{"bind mount of the host's kernel", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/x/../proc/1", Options: []string{"rbind"}})
		}, errdefs.IsNotImplemented, "/proc/1"},
		{"id-mapped mount", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Source: "/srv", Options: []string{"rbind", "ridmap"}})
		}, errdefs.IsNotImplemented, "ridmap"},
		{"filesystem of the host", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "nfs", Source: "server:/srv"})
		}, errdefs.IsNotImplemented, `"server:/srv"`},
		{"relative mount", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "data", Type: "tmpfs"})
		}, errdefs.IsInvalidArgument, `"data"`},
		{"user namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}, errdefs.IsNotImplemented, "user namespace"},
		{"unknown namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "dream"})
		}, errdefs.IsInvalidArgument, `"dream"`},
		{"id mapping", func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, errdefs.IsNotImplemented, "uidMappings"},
		{"joined namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/1/ns/pid"}}
		}, errdefs.IsNotImplemented, "/proc/1/ns/pid is one of the host and cannot be joined from a virtual machine: leave it out (--with-ns"},
		{"seccomp that asks the host", func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{ListenerPath: "/run/listener"}
		}, errdefs.IsNotImplemented, "/run/listener"},
		{"sysctl that is a path", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net/../../x": "1"}
		}, errdefs.IsInvalidArgument, "linux.sysctl"},
		{"propagation", func(s *specs.Spec) { s.Linux.RootfsPropagation = "everywhere" }, errdefs.IsInvalidArgument, "rootfsPropagation"},
		{"terminal beyond what a terminal can be", func(s *specs.Spec) {
			s.Process.ConsoleSize = &specs.Box{Height: 1 << 16}
		}, errdefs.IsInvalidArgument, "process.consoleSize"},
		{"spec for Windows", func(s *specs.Spec) { s.Windows = &specs.Windows{} }, errdefs.IsInvalidArgument, "windows"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := load(t, "ctr.json")
			tc.change(s)
			_, err := Convert(s, options)
			if err == nil || !tc.class(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v; want one with %q", err, tc.text)
			}
		})
	}
}

func TestCgroupsPathIsOneOfTheGuest(t *testing.T) {
	for in, want := range map[string]string{
		"/default/c1":                 "/default/c1",
		"k8s.io/c1":                   "/k8s.io/c1",
		"pod.slice:cri-containerd:c1": "/pod.slice/cri-containerd-c1",
		"../../escape":                "/escape",
	} {
		if got := cgroupsPath(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestTheNetworkNamespaceIsTheVMs(t *testing.T) {
	r, err := Convert(load(t, "ctr.json"), options)
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range r.Spec.Linux.Namespaces {
		if ns.Type == string(specs.NetworkNamespace) || ns.Path != "" {
			t.Errorf("namespace %v reaches the guest", ns)
		}
	}
	if !slices.ContainsFunc(load(t, "ctr.json").Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace }) {
		t.Error("the test's spec has no network namespace")
	}
}

// TestAContainerHasACgroupNamespaceWhereItsHostMakesNone: a program that looks for its
// limits at /sys/fs/cgroup finds them, whichever cgroups the host has.
func TestAContainerHasACgroupNamespaceWhereItsHostMakesNone(t *testing.T) {
	for _, c := range []struct{ v1, asked, want bool }{
		{v1: true, want: true}, {v1: true, asked: true, want: true},
		{}, {asked: true, want: true}, // none: that of the VM, as for a privileged container
	} {
		s, o := inPod(), options
		o.CgroupV1, o.Pod = c.v1, &Pod{Pid: 7}
		if c.asked {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}
		r, err := Convert(s, o)
		if err != nil {
			t.Fatal(err)
		}
		have := 0
		for _, ns := range r.Spec.GetLinux().GetNamespaces() {
			if ns.GetType() == string(specs.CgroupNamespace) {
				have++
			}
		}
		if have > 1 || have == 1 != c.want {
			t.Errorf("%+v: %d cgroup namespaces", c, have)
		}
	}
}

func TestAProcessIsHeldToTheSameRules(t *testing.T) {
	p := load(t, "everything.json").Process
	got, dropped, err := Process(p)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := Convert(load(t, "everything.json"), options)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, whole.Spec.Process) || len(dropped) == 0 || !strings.HasPrefix(dropped[0], "process.") {
		t.Errorf("%v, dropped %q", got, dropped)
	}
	if _, _, err := Process(nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no process: %v", err)
	}
}

func TestSharedMemoryIsTheGuests(t *testing.T) {
	s := load(t, "ctr.json")
	s.Mounts = []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: "/run/sandboxes/x/shm", Options: []string{"rbind", "ro"}}}
	r, err := Convert(s, options)
	if err != nil || len(r.Copies) != 0 || r.Spec.Mounts[0].Type != "tmpfs" {
		t.Errorf("%v, copies %v, %v", r.Spec.GetMounts(), r.Copies, err)
	}
}

func TestDevicesOfTheHostStayThere(t *testing.T) {
	s := load(t, "ctr.json")
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
		{Path: "/dev/sda", Type: "b", Major: 8, Minor: 0},
		{Path: "/dev/fake", Type: "b", Major: 10, Minor: 229},
		{Path: "/dev/initctl", Type: "p"},
	}
	r, err := Convert(s, options)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, d := range r.Spec.Linux.Devices {
		kept = append(kept, d.Path)
	}
	if !slices.Equal(kept, []string{"/dev/fuse", "/dev/initctl"}) || len(r.Dropped) != 2 {
		t.Errorf("kept %v, dropped %q", kept, r.Dropped)
	}
}

func TestASocketIsABindMountOfTheGuests(t *testing.T) {
	host := load(t, "ctr.json")
	host.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/run/s", Type: "uds", Source: "/host/./s", Options: []string{"rbind", "ro"}},
	}
	r, err := Convert(host, options)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Socket{{Destination: "/run/s", Source: "/host/s", Name: "1"}}; !slices.Equal(r.Sockets, want) || len(r.Copies) != 0 {
		t.Errorf("sockets %+v, want %+v; copies %+v", r.Sockets, want, r.Copies)
	}
	m := r.Spec.Mounts[1]
	if m.Type != "bind" || m.Source != "/guest/copies/1" || !slices.Contains(m.Options, "bind") || !slices.Contains(m.Options, "ro") {
		t.Errorf("mount %+v", m)
	}
	host.Mounts[1].Source = "s"
	if _, err := Convert(host, options); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a relative source: %v", err)
	}
}

// inPod is a container that has all in common with its pod, whose process on the
// host is 7.
func inPod() *specs.Spec {
	s := &specs.Spec{
		Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}, Root: &specs.Root{}, Linux: &specs.Linux{},
		Hostname: "own", Mounts: []specs.Mount{{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"}},
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: "/proc/7/ns/" + string(kind)})
	}
	return s
}

func TestNamespacesOfThePodAreTheGuests(t *testing.T) {
	o := options
	o.Pod = &Pod{Pid: 7, Shm: "/guest/shm"}
	r, err := Convert(inPod(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Spec.GetLinux().GetNamespaces()) != 0 || !r.PodPID || r.Spec.GetHostname() != "" || !slices.ContainsFunc(r.Dropped, func(d string) bool { return strings.HasPrefix(d, "hostname") }) {
		t.Errorf("%v, that of the pod %v, dropped %q", r.Spec, r.PodPID, r.Dropped)
	}
	if m := r.Spec.GetMounts()[0]; m.GetType() != "bind" || m.GetSource() != "/guest/shm" {
		t.Errorf("/dev/shm: %v", m)
	}

	s := inPod()
	s.Mounts[0] = specs.Mount{
		Destination: "/dev/shm", Type: "bind", Options: []string{"rbind"},
		Source: "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~empty-dir/shm",
	}
	if r, err := Convert(s, o); err != nil || len(r.Copies) != 1 || r.Spec.GetMounts()[0].GetSource() == "/guest/shm" {
		t.Errorf("a volume at /dev/shm: %v, %v", r.Spec, err)
	}

	for name, change := range map[string]func(*specs.Spec, *Options){
		"of another process": func(s *specs.Spec, _ *Options) { s.Linux.Namespaces[0].Path = "/proc/8/ns/pid" },
		"of another kind":    func(s *specs.Spec, _ *Options) { s.Linux.Namespaces[0].Path = "/proc/7/ns/ipc" },
		"without a pod":      func(_ *specs.Spec, o *Options) { o.Pod = nil },
		"before its VM runs": func(s *specs.Spec, o *Options) {
			s.Linux.Namespaces[0].Path, o.Pod = "/proc/0/ns/pid", &Pod{}
		},
		"mounts": func(s *specs.Spec, _ *Options) {
			s.Linux.Namespaces[0] = specs.LinuxNamespace{Type: specs.MountNamespace, Path: "/proc/7/ns/mnt"}
		},
	} {
		s, o := inPod(), o
		change(s, &o)
		if _, err := Convert(s, o); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "linux.namespaces") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewNamespacesAreThePodsForItsFirstContainerAlone(t *testing.T) {
	for _, infra := range []bool{true, false} {
		s, o := inPod(), options
		for i := range s.Linux.Namespaces {
			s.Linux.Namespaces[i].Path = ""
		}
		o.Pod = &Pod{Pid: 7, Shm: "/guest/shm", Infra: infra}
		r, err := Convert(s, o)
		if err != nil {
			t.Fatal(err)
		}
		if own := len(r.Spec.GetLinux().GetNamespaces()) == 3 && r.Spec.GetHostname() == "own" && r.Spec.GetMounts()[0].GetType() == "tmpfs"; own == infra || r.PodPID != infra {
			t.Errorf("first %v: %v, pid of the pod %v", infra, r.Spec, r.PodPID)
		}
	}
}
