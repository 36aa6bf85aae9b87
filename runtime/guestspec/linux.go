package guestspec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

func (r *Result) linux(l *specs.Linux, o Options) (*pb.Linux, error) {
	if len(l.UIDMappings) > 0 || len(l.GIDMappings) > 0 {
		return nil, unsupported("linux.uidMappings and linux.gidMappings need a user namespace, which the guest does not make: the virtual machine is the boundary")
	}
	if len(l.TimeOffsets) > 0 {
		return nil, unsupported("linux.timeOffsets need a time namespace, which the guest does not make")
	}
	if l.Personality != nil && (l.Personality.Domain != specs.PerLinux || len(l.Personality.Flags) > 0) {
		return nil, unsupported("linux.personality %s: %s", l.Personality.Domain, noField)
	}
	if len(l.NetDevices) > 0 {
		return nil, unsupported("linux.netDevices: interfaces of the host do not move into the guest")
	}
	namespaces, err := r.namespaces(l.Namespaces, o)
	if err != nil {
		return nil, err
	}
	seccomp, err := r.seccomp(l.Seccomp)
	if err != nil {
		return nil, err
	}
	if err := checkSysctl(l.Sysctl); err != nil {
		return nil, err
	}
	devices, err := r.devices(l.Devices, l.Resources)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(propagations, l.RootfsPropagation) {
		return nil, invalid("linux.rootfsPropagation %q is none of %s", l.RootfsPropagation, strings.Join(propagations[1:], ", "))
	}
	if l.IntelRdt != nil {
		r.drop("linux.intelRdt", "it belongs to the host's processor")
	}
	if l.MemoryPolicy != nil {
		r.drop("linux.memoryPolicy", "it names the host's memory nodes")
	}
	if l.MountLabel != "" {
		r.drop("linux.mountLabel", "labels of the host mean nothing in the guest")
	}
	return &pb.Linux{
		Sysctl:            l.Sysctl,
		Resources:         r.resources(l.Resources),
		CgroupsPath:       cgroupsPath(l.CgroupsPath),
		Namespaces:        namespaces,
		Devices:           devices,
		Seccomp:           seccomp,
		RootfsPropagation: l.RootfsPropagation,
		MaskedPaths:       l.MaskedPaths,
		ReadonlyPaths:     l.ReadonlyPaths,
	}, nil
}

var propagations = []string{"", "shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable"}

// cgroupsPath makes a plain path of both forms that containerd writes, that of
// cgroupfs and "slice:prefix:name" of systemd: the guest runs no systemd.
func cgroupsPath(p string) string {
	if parts := strings.Split(p, ":"); len(parts) == 3 {
		p = path.Join(parts[0], parts[1]+"-"+parts[2])
	}
	return path.Join("/", p)
}

// checkSysctl refuses names that would be other files than below /proc/sys.
// Which of them a container may set is for the guest to say.
func checkSysctl(sysctl map[string]string) error {
	for name := range sysctl {
		if name == "" || path.IsAbs(name) || strings.ContainsAny(name, "\x00\n") || slices.Contains(strings.Split(name, "/"), "..") {
			return invalid("linux.sysctl: %q is no name", name)
		}
	}
	return nil
}

// device is the kind of a device node, by number.
type device struct {
	kind         string
	major, minor int64
}

// virtual are devices that every Linux kernel has without hardware, so that the
// guest's are as good as the host's (Documentation/admin-guide/devices.txt).
var virtual = []device{
	{"c", 1, 3}, {"c", 1, 5}, {"c", 1, 7}, {"c", 1, 8}, {"c", 1, 9}, {"c", 1, 11}, // null, zero, full, random, urandom, kmsg
	{"c", 5, 0}, {"c", 5, 2}, // tty, ptmx
	{"c", 10, 200}, {"c", 10, 229}, {"c", 10, 237}, // net/tun, fuse, loop-control
}

// devices keeps the nodes behind which the guest has the same device, and those that
// a disk can be put behind.
func (r *Result) devices(in []specs.LinuxDevice, resources *specs.LinuxResources) ([]*pb.LinuxDevice, error) {
	var rules []specs.LinuxDeviceCgroup
	if resources != nil {
		rules = resources.Devices
	}
	var out []*pb.LinuxDevice
	for _, d := range in {
		kind := d.Type
		if kind == "u" {
			kind = "c"
		}
		isBlock, err := r.block(d, rules)
		if err != nil {
			return nil, err
		}
		if kind != "p" && !isBlock && !slices.Contains(virtual, device{kind, d.Major, d.Minor}) {
			r.drop("linux.devices "+d.Path, "a device of the host")
			continue
		}
		out = append(out, &pb.LinuxDevice{
			Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor,
			FileMode: uint32(value(d.FileMode, 0o666)), UID: value(d.UID, 0), GID: value(d.GID, 0),
		})
	}
	return out, nil
}

// eperm is the number that a refused system call returns if nothing else is
// said (OCI runtime spec, config-linux.md, defaultErrnoRet).
const eperm = 1

// seccomp hands the filter over as it is. Whether it can be loaded is for the
// agent to say.
func (r *Result) seccomp(in *specs.LinuxSeccomp) (*pb.LinuxSeccomp, error) {
	if in == nil {
		return nil, nil
	}
	if in.ListenerPath != "" || in.ListenerMetadata != "" {
		return nil, unsupported("linux.seccomp.listenerPath %q is a socket of the host, which the guest cannot reach", in.ListenerPath)
	}
	if n := in.DefaultErrnoRet; n != nil && *n != eperm {
		r.drop("linux.seccomp.defaultErrnoRet", noField)
	}
	out := &pb.LinuxSeccomp{DefaultAction: string(in.DefaultAction)}
	for _, a := range in.Architectures {
		out.Architectures = append(out.Architectures, string(a))
	}
	for _, f := range in.Flags {
		out.Flags = append(out.Flags, string(f))
	}
	for _, s := range in.Syscalls {
		call := &pb.LinuxSyscall{Names: s.Names, Action: string(s.Action)}
		if s.ErrnoRet != nil {
			call.ErrnoRet = &pb.LinuxSyscall_Errnoret{Errnoret: uint32(*s.ErrnoRet)}
		}
		for _, a := range s.Args {
			call.Args = append(call.Args, &pb.LinuxSeccompArg{Index: uint64(a.Index), Value: a.Value, ValueTwo: a.ValueTwo, Op: string(a.Op)})
		}
		out.Syscalls = append(out.Syscalls, call)
	}
	return out, nil
}
