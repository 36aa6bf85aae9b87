// Package guestspec turns the OCI spec that containerd wrote for the host into
// the spec that the guest's agent runs.
//
// It is a pure function over plain data: nothing is read, started or kept, the
// spec that comes in is not changed, and any goroutine may call it. What the
// guest cannot do is refused with an error that names the field; what has no
// meaning inside a VM is dropped, and said in Result.Dropped.
package guestspec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Result is a spec for the guest.
type Result struct {
	Spec *pb.Spec
	// Dropped names the fields that were left out, each with the reason, for
	// the log.
	Dropped []string
}

// Convert makes the guest's spec for a container whose root filesystem the
// guest has at rootfs. Errors are of class errdefs.ErrNotImplemented for what
// is not supported and errdefs.ErrInvalidArgument for what is no valid spec.
func Convert(host *specs.Spec, rootfs string) (Result, error) {
	var r Result
	if host == nil || host.Process == nil || host.Root == nil || host.Linux == nil {
		return r, fmt.Errorf("config.json: process, root and linux are required: %w", errdefs.ErrInvalidArgument)
	}
	if len(host.Process.Args) == 0 {
		return r, fmt.Errorf("config.json: process.args is empty: %w", errdefs.ErrInvalidArgument)
	}
	if !path.IsAbs(host.Process.Cwd) {
		return r, fmt.Errorf("config.json: process.cwd %q is not absolute: %w", host.Process.Cwd, errdefs.ErrInvalidArgument)
	}
	if host.Hooks != nil && !emptyHooks(host.Hooks) {
		return r, fmt.Errorf("config.json: hooks are not supported yet: %w", errdefs.ErrNotImplemented)
	}
	mounts, err := r.mounts(host.Mounts)
	if err != nil {
		return r, err
	}
	linux, err := r.linux(host.Linux)
	if err != nil {
		return r, err
	}
	r.Spec = &pb.Spec{
		Version:     host.Version,
		Process:     r.process(host.Process),
		Root:        &pb.Root{Path: rootfs, Readonly: host.Root.Readonly},
		Hostname:    host.Hostname,
		Mounts:      mounts,
		Annotations: host.Annotations,
		Linux:       linux,
	}
	if host.Domainname != "" {
		r.drop("domainname", "the agent's protocol has no field for it")
	}
	return r, nil
}

func (r *Result) drop(field, reason string) {
	r.Dropped = append(r.Dropped, field+": "+reason)
}

func emptyHooks(h *specs.Hooks) bool {
	//lint:ignore SA1019 Prestart is deprecated, and a spec can still have it.
	return len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) == 0
}

// hostless are the filesystems that a guest can mount by itself.
var hostless = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

func (r *Result) mounts(in []specs.Mount) ([]*pb.Mount, error) {
	var out []*pb.Mount
	for _, m := range in {
		if !path.IsAbs(m.Destination) {
			return nil, fmt.Errorf("config.json: mount destination %q is not absolute: %w", m.Destination, errdefs.ErrInvalidArgument)
		}
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return nil, fmt.Errorf("config.json: mount %s: id-mapped mounts are not supported: %w", m.Destination, errdefs.ErrNotImplemented)
		}
		if !slices.Contains(hostless, m.Type) {
			return nil, fmt.Errorf("config.json: mount %s: type %q from %s needs the host's files, which do not reach the guest yet: %w",
				m.Destination, m.Type, m.Source, errdefs.ErrNotImplemented)
		}
		if i := slices.IndexFunc(m.Options, func(o string) bool { return o == "bind" || o == "rbind" }); i >= 0 {
			return nil, fmt.Errorf("config.json: mount %s: option %q of %s needs the host's files, which do not reach the guest yet: %w",
				m.Destination, m.Options[i], m.Source, errdefs.ErrNotImplemented)
		}
		out = append(out, &pb.Mount{Destination: m.Destination, Source: m.Source, Type: m.Type, Options: m.Options})
	}
	return out, nil
}

func (r *Result) process(p *specs.Process) *pb.Process {
	out := &pb.Process{
		Terminal:        p.Terminal,
		User:            &pb.User{UID: p.User.UID, GID: p.User.GID, AdditionalGids: p.User.AdditionalGids, Username: p.User.Username},
		Args:            p.Args,
		Env:             p.Env,
		Cwd:             p.Cwd,
		NoNewPrivileges: p.NoNewPrivileges,
	}
	if p.User.Umask != nil {
		r.drop("process.user.umask", "the agent's protocol has no field for it")
	}
	if p.ConsoleSize != nil {
		out.ConsoleSize = &pb.Box{Height: uint32(p.ConsoleSize.Height), Width: uint32(p.ConsoleSize.Width)}
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &pb.LinuxCapabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
			Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, l := range p.Rlimits {
		out.Rlimits = append(out.Rlimits, &pb.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
	}
	if p.OOMScoreAdj != nil {
		out.OOMScoreAdj = int64(*p.OOMScoreAdj)
	}
	if p.ApparmorProfile != "" {
		r.drop("process.apparmorProfile", "profiles of the host are not loaded in the guest")
	}
	if p.SelinuxLabel != "" {
		r.drop("process.selinuxLabel", "labels of the host mean nothing in the guest")
	}
	if p.Scheduler != nil || p.IOPriority != nil || p.ExecCPUAffinity != nil {
		r.drop("process.scheduler, ioPriority, execCPUAffinity", "the agent's protocol has no fields for them")
	}
	return out
}

func (r *Result) linux(l *specs.Linux) (*pb.Linux, error) {
	if len(l.UIDMappings)+len(l.GIDMappings) > 0 {
		return nil, fmt.Errorf("config.json: linux.uidMappings: user namespaces are not supported yet: %w", errdefs.ErrNotImplemented)
	}
	namespaces, err := r.namespaces(l.Namespaces)
	if err != nil {
		return nil, err
	}
	if l.Seccomp != nil {
		return nil, fmt.Errorf("config.json: linux.seccomp is not supported yet: %w", errdefs.ErrNotImplemented)
	}
	if len(l.Devices) > 0 {
		for _, d := range l.Devices {
			r.drop("linux.devices "+d.Path, "a device of the host")
		}
	}
	if l.IntelRdt != nil {
		r.drop("linux.intelRdt", "belongs to the host's processor")
	}
	if l.MountLabel != "" {
		r.drop("linux.mountLabel", "labels of the host mean nothing in the guest")
	}
	return &pb.Linux{
		Sysctl:            l.Sysctl,
		Resources:         r.resources(l.Resources),
		CgroupsPath:       r.cgroupsPath(l.CgroupsPath),
		Namespaces:        namespaces,
		RootfsPropagation: l.RootfsPropagation,
		MaskedPaths:       l.MaskedPaths,
		ReadonlyPaths:     l.ReadonlyPaths,
	}, nil
}

// namespaces keeps the new ones that separate containers inside the guest. The
// network is that of the VM, which is the pod's.
func (r *Result) namespaces(in []specs.LinuxNamespace) ([]*pb.LinuxNamespace, error) {
	var out []*pb.LinuxNamespace
	for _, ns := range in {
		switch ns.Type {
		case specs.NetworkNamespace:
			continue
		case specs.UserNamespace, specs.TimeNamespace:
			return nil, fmt.Errorf("config.json: linux.namespaces: a %s namespace is not supported: %w", ns.Type, errdefs.ErrNotImplemented)
		case specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.CgroupNamespace:
		default:
			return nil, fmt.Errorf("config.json: linux.namespaces: unknown type %q: %w", ns.Type, errdefs.ErrInvalidArgument)
		}
		if ns.Path != "" {
			return nil, fmt.Errorf("config.json: linux.namespaces: %s namespace %s is the host's and cannot be joined from a VM: %w",
				ns.Type, ns.Path, errdefs.ErrNotImplemented)
		}
		out = append(out, &pb.LinuxNamespace{Type: string(ns.Type)})
	}
	return out, nil
}

// cgroupsPath makes a plain path of both forms that containerd writes, that of
// cgroupfs and "slice:prefix:name" of systemd: the guest runs no systemd.
func (r *Result) cgroupsPath(p string) string {
	if parts := strings.Split(p, ":"); len(parts) == 3 {
		p = path.Join(parts[0], parts[1]+"-"+parts[2])
	}
	return path.Join("/", p)
}
