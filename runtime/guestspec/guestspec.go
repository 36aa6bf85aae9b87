// Package guestspec turns the OCI spec that containerd wrote for the host into
// the spec that the guest's agent runs, and into what is left to do on the
// host for it: hooks to run, files to copy.
//
// It is a pure function over plain data: nothing is read, started or kept, the
// spec that comes in is not changed, and any goroutine may call it. What the
// guest cannot do is refused with an error that names the field; what has no
// meaning inside a VM is dropped, and said in Result.Dropped. The table of
// docs/oci-spec.md says what becomes of each field and why; a test holds both
// together.
package guestspec

import (
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Options are what Convert has to know besides the spec.
type Options struct {
	// Bundle is the directory of the host that relative sources of bind mounts
	// start from.
	Bundle string
	// Rootfs is where the guest has the container's root filesystem.
	Rootfs string
	// Copies is the directory of the guest below which copies of the host's
	// files, and sockets, go, one name for each mount.
	Copies string
	// Shares is the directory of the guest where it is shown the host's files, by
	// the same names. Empty: it gets copies.
	Shares string
	// PassHooks hands hooks that run inside the container over to the guest.
	// Without it they are refused.
	PassHooks bool
	// CgroupV1 says that the host has cgroups of version 1. Containerd asks for no
	// cgroup namespace there.
	CgroupV1 bool
	// Pod is that of the container; nil for one that has its VM for itself.
	Pod *Pod
}

// Pod is the pod that a container belongs to. Its network, ipc and uts namespaces
// are the guest's own; its pid namespace is one that the agent makes.
type Pod struct {
	// Pid is the process of the host by which containerd names the namespaces of
	// the pod: /proc/<Pid>/ns/….
	Pid int
	// Infra says that the container is the one that the pod was made for: what it
	// has new is the pod's.
	Infra bool
	// Shm is the directory of the guest that the containers share as /dev/shm.
	Shm string
}

// Result is a spec for the guest, and what the host has to do for it.
type Result struct {
	Spec *pb.Spec
	// Copies are the files and directories of the host that the guest's spec
	// has mounts from.
	Copies []Copy
	// Sockets are the Unix sockets of the host that it has mounts of.
	Sockets []Socket
	// Blocks are the block devices of the host that the guest's spec has nodes of.
	Blocks []Block
	// PodPID says that the container joins the pid namespace of its pod.
	PodPID bool
	// Hooks are those that run on the host.
	Hooks HostHooks
	// Dropped names the fields that were left out, each as "field: reason", for
	// the log.
	Dropped []string
}

// Convert makes the guest's spec. Errors are of class errdefs.ErrNotImplemented
// for what is not supported and errdefs.ErrInvalidArgument for what is no valid
// spec.
func Convert(host *specs.Spec, o Options) (Result, error) {
	var r Result
	if host == nil || host.Process == nil || host.Root == nil || host.Linux == nil {
		return r, invalid("process, root and linux are required")
	}
	if err := foreign(host); err != nil {
		return r, err
	}
	process, err := r.process(host.Process)
	if err != nil {
		return r, err
	}
	mounts, err := r.mounts(host, o)
	if err != nil {
		return r, err
	}
	linux, err := r.linux(host.Linux, o)
	if err != nil {
		return r, err
	}
	hooks, err := r.hooks(host.Hooks, o.PassHooks)
	if err != nil {
		return r, err
	}
	r.Spec = &pb.Spec{
		Version:     host.Version,
		Process:     process,
		Root:        &pb.Root{Path: o.Rootfs, Readonly: host.Root.Readonly},
		Hostname:    r.hostname(host, o.Pod),
		Mounts:      mounts,
		Hooks:       hooks,
		Annotations: host.Annotations,
		Linux:       linux,
	}
	if host.Domainname != "" {
		r.drop("domainname", noField)
	}
	if host.VM != nil {
		r.drop("vm", "the virtual machine is what erofsvm's configuration says")
	}
	return r, nil
}

// Process makes the guest's form of a process that is added to a container. It
// returns what was dropped as Convert does.
func Process(host *specs.Process) (process *pb.Process, dropped []string, err error) {
	var r Result
	if host == nil {
		return nil, nil, invalid("process is required")
	}
	process, err = r.process(host)
	return process, r.Dropped, err
}

// Resources makes the guest's form of limits that are changed. It returns what
// was dropped as Convert does.
func Resources(host *specs.LinuxResources) (resources *pb.LinuxResources, dropped []string) {
	var r Result
	resources = r.resources(host)
	return resources, r.Dropped
}

// noField is the reason for most of what is dropped.
const noField = "the agent's protocol has no field for it"

func (r *Result) drop(field, reason string) {
	r.Dropped = append(r.Dropped, field+": "+reason)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("OCI spec: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("OCI spec: "+format+": %w", append(args, errdefs.ErrNotImplemented)...)
}

// foreign refuses what makes a spec one for another system.
func foreign(host *specs.Spec) error {
	for _, section := range []struct {
		name string
		set  bool
	}{
		{"solaris", host.Solaris != nil}, {"windows", host.Windows != nil},
		{"zos", host.ZOS != nil}, {"freebsd", host.FreeBSD != nil},
	} {
		if section.set {
			return invalid("%s is set, and the guest runs Linux", section.name)
		}
	}
	return nil
}

func (r *Result) process(p *specs.Process) (*pb.Process, error) {
	if len(p.Args) == 0 {
		return nil, invalid("process.args is empty")
	}
	if !path.IsAbs(p.Cwd) {
		return nil, invalid("process.cwd %q is not absolute", p.Cwd)
	}
	out := &pb.Process{
		Terminal:        p.Terminal,
		User:            &pb.User{UID: p.User.UID, GID: p.User.GID, AdditionalGids: p.User.AdditionalGids, Username: p.User.Username},
		Args:            p.Args,
		Env:             p.Env,
		Cwd:             p.Cwd,
		NoNewPrivileges: p.NoNewPrivileges,
	}
	if p.ConsoleSize != nil {
		const most = 1<<16 - 1 // struct winsize
		if p.ConsoleSize.Height > most || p.ConsoleSize.Width > most {
			return nil, invalid("process.consoleSize is %d by %d, at most %d", p.ConsoleSize.Height, p.ConsoleSize.Width, most)
		}
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
	r.dropFromProcess(p)
	return out, nil
}

func (r *Result) dropFromProcess(p *specs.Process) {
	if p.CommandLine != "" {
		r.drop("process.commandLine", "process.args counts on Linux")
	}
	if p.User.Umask != nil {
		r.drop("process.user.umask", noField)
	}
	if p.ApparmorProfile != "" {
		r.drop("process.apparmorProfile", "profiles of the host are not loaded in the guest")
	}
	if p.SelinuxLabel != "" {
		r.drop("process.selinuxLabel", "labels of the host mean nothing in the guest")
	}
	if p.Scheduler != nil {
		r.drop("process.scheduler", noField)
	}
	if p.IOPriority != nil {
		r.drop("process.ioPriority", noField)
	}
	if p.ExecCPUAffinity != nil {
		r.drop("process.execCPUAffinity", "it numbers the host's processors")
	}
}
