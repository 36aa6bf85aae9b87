package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// toSpec translates the specification from the wire, where a number that is
// zero means "not set", to the one libcontainer reads. What this guest cannot
// do is refused by name instead of being left out.
func toSpec(s *pb.Spec, id, rootfs string) (*specs.Spec, error) {
	switch {
	case s == nil:
		return nil, fmt.Errorf("no OCI specification: %w", errdefs.ErrInvalidArgument)
	case s.GetRoot() == nil || filepath.Clean(s.GetRoot().GetPath()) != rootfs:
		return nil, fmt.Errorf("OCI.Root.Path %.256q, want %s: %w", s.GetRoot().GetPath(), rootfs, errdefs.ErrInvalidArgument)
	case s.GetSolaris() != nil || s.GetWindows() != nil:
		return nil, fmt.Errorf("OCI.Solaris or OCI.Windows in a Linux guest: %w", errdefs.ErrInvalidArgument)
	case s.GetLinux() == nil:
		return nil, fmt.Errorf("no OCI.Linux: %w", errdefs.ErrInvalidArgument)
	case s.GetLinux().GetSeccomp() != nil && !seccomp.Enabled:
		return nil, fmt.Errorf("OCI.Linux.Seccomp: this agent is built without seccomp; run the container without a profile: %w", errdefs.ErrNotImplemented)
	}
	process, err := toProcess(s.GetProcess())
	if err != nil {
		return nil, err
	}
	return &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: rootfs, Readonly: s.GetRoot().GetReadonly()},
		Hostname:    s.GetHostname(),
		Mounts:      each(s.GetMounts(), toMount),
		Hooks:       toHooks(s.GetHooks()),
		Annotations: s.GetAnnotations(),
		Linux:       toLinux(s.GetLinux(), id),
	}, nil
}

func toMount(m *pb.Mount) specs.Mount {
	return specs.Mount{Destination: m.GetDestination(), Source: m.GetSource(), Type: m.GetType(), Options: m.GetOptions()}
}

func toHooks(h *pb.Hooks) *specs.Hooks {
	if h == nil {
		return nil
	}
	hook := func(h *pb.Hook) specs.Hook {
		out := specs.Hook{Path: h.GetPath(), Args: h.GetArgs(), Env: h.GetEnv()}
		if t := int(h.GetTimeout()); t > 0 {
			out.Timeout = &t
		}
		return out
	}
	return &specs.Hooks{
		//lint:ignore SA1019 deprecated, and still a field of the wire
		Prestart:        each(h.GetPrestart(), hook),
		CreateRuntime:   each(h.GetCreateRuntime(), hook),
		CreateContainer: each(h.GetCreateContainer(), hook),
		StartContainer:  each(h.GetStartContainer(), hook),
		Poststart:       each(h.GetPoststart(), hook),
		Poststop:        each(h.GetPoststop(), hook),
	}
}

func toLinux(l *pb.Linux, id string) *specs.Linux {
	out := &specs.Linux{
		UIDMappings:       each(l.GetUIDMappings(), toIDMapping),
		GIDMappings:       each(l.GetGIDMappings(), toIDMapping),
		Sysctl:            l.GetSysctl(),
		Resources:         toResources(l.GetResources()),
		CgroupsPath:       cgroupsPath(l.GetCgroupsPath(), id),
		RootfsPropagation: l.GetRootfsPropagation(),
		MaskedPaths:       l.GetMaskedPaths(),
		ReadonlyPaths:     l.GetReadonlyPaths(),
		MountLabel:        l.GetMountLabel(),
		Seccomp:           toSeccomp(l.GetSeccomp()),
		Namespaces: each(l.GetNamespaces(), func(n *pb.LinuxNamespace) specs.LinuxNamespace {
			return specs.LinuxNamespace{Type: specs.LinuxNamespaceType(n.GetType()), Path: n.GetPath()}
		}),
		Devices: each(l.GetDevices(), func(d *pb.LinuxDevice) specs.LinuxDevice {
			mode := os.FileMode(d.GetFileMode())
			uid, gid := d.GetUID(), d.GetGID()
			return specs.LinuxDevice{Path: d.GetPath(), Type: d.GetType(), Major: d.GetMajor(), Minor: d.GetMinor(), FileMode: &mode, UID: &uid, GID: &gid}
		}),
	}
	if schema := l.GetIntelRdt().GetL3CacheSchema(); schema != "" {
		out.IntelRdt = &specs.LinuxIntelRdt{L3CacheSchema: schema}
	}
	return out
}

// cgroupsPath is where the container's cgroup goes, absolute, so that it does
// not lie below the agent's own. systemd's form of a path ("slice:prefix:name")
// means nothing here and is replaced, as is the root, which is the guest's.
func cgroupsPath(path, id string) string {
	if path = filepath.Clean("/" + path); path == "/" || strings.Contains(path, ":") {
		return "/containers/" + id
	}
	return path
}

func toIDMapping(m *pb.LinuxIDMapping) specs.LinuxIDMapping {
	return specs.LinuxIDMapping{HostID: m.GetHostID(), ContainerID: m.GetContainerID(), Size: m.GetSize()}
}

func toSeccomp(s *pb.LinuxSeccomp) *specs.LinuxSeccomp {
	if s == nil {
		return nil
	}
	arg := func(a *pb.LinuxSeccompArg) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: uint(a.GetIndex()), Value: a.GetValue(), ValueTwo: a.GetValueTwo(), Op: specs.LinuxSeccompOperator(a.GetOp())}
	}
	return &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(s.GetDefaultAction()),
		Architectures: each(s.GetArchitectures(), func(a string) specs.Arch { return specs.Arch(a) }),
		Flags:         each(s.GetFlags(), func(f string) specs.LinuxSeccompFlag { return specs.LinuxSeccompFlag(f) }),
		Syscalls: each(s.GetSyscalls(), func(c *pb.LinuxSyscall) specs.LinuxSyscall {
			out := specs.LinuxSyscall{Names: c.GetNames(), Action: specs.LinuxSeccompAction(c.GetAction()), Args: each(c.GetArgs(), arg)}
			if e, ok := c.GetErrnoRet().(*pb.LinuxSyscall_Errnoret); ok {
				ret := uint(e.Errnoret)
				out.ErrnoRet = &ret
			}
			return out
		}),
	}
}

// each translates a list, and keeps an empty one nil.
func each[In, Out any](in []In, f func(In) Out) []Out {
	if len(in) == 0 {
		return nil
	}
	out := make([]Out, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

// SupportsSeccomp says whether the agent was built with seccomp.
const SupportsSeccomp = seccomp.Enabled
