package container

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// toProcess translates a process from the wire. A profile of AppArmor is left
// out: the guest has none loaded, and the boundary is the machine.
func toProcess(p *pb.Process) (*specs.Process, error) {
	switch {
	case p == nil || len(p.GetArgs()) == 0:
		return nil, fmt.Errorf("no OCI.Process.Args: %w", errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(p.GetCwd()):
		return nil, fmt.Errorf("OCI.Process.Cwd %.256q is not absolute: %w", p.GetCwd(), errdefs.ErrInvalidArgument)
	}
	score := int(p.GetOOMScoreAdj())
	out := &specs.Process{
		Terminal:        p.GetTerminal(),
		Args:            p.GetArgs(),
		Env:             p.GetEnv(),
		Cwd:             p.GetCwd(),
		NoNewPrivileges: p.GetNoNewPrivileges(),
		SelinuxLabel:    p.GetSelinuxLabel(),
		OOMScoreAdj:     &score,
		User: specs.User{
			UID: p.GetUser().GetUID(), GID: p.GetUser().GetGID(),
			AdditionalGids: p.GetUser().GetAdditionalGids(), Username: p.GetUser().GetUsername(),
		},
	}
	if b := p.GetConsoleSize(); b != nil {
		out.ConsoleSize = &specs.Box{Height: uint(b.GetHeight()), Width: uint(b.GetWidth())}
	}
	if c := p.GetCapabilities(); c != nil {
		out.Capabilities = &specs.LinuxCapabilities{
			Bounding: c.GetBounding(), Effective: c.GetEffective(), Inheritable: c.GetInheritable(),
			Permitted: c.GetPermitted(), Ambient: c.GetAmbient(),
		}
	}
	for _, r := range p.GetRlimits() {
		if _, known := rlimits[r.GetType()]; !known {
			return nil, fmt.Errorf("OCI.Process.Rlimits: no limit is named %.64q: %w", r.GetType(), errdefs.ErrInvalidArgument)
		}
		out.Rlimits = append(out.Rlimits, specs.POSIXRlimit{Type: r.GetType(), Hard: r.GetHard(), Soft: r.GetSoft()})
	}
	return out, nil
}

// rlimits are the names of setrlimit(2), as the OCI specification writes them.
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// toLibcontainer prepares a process for libcontainer. Input, output and console
// are left for the caller to fill in.
func toLibcontainer(p *specs.Process, init bool) *libcontainer.Process {
	out := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		NoNewPrivileges: &p.NoNewPrivileges,
		Init:            init,
	}
	for _, gid := range p.User.AdditionalGids {
		out.AdditionalGroups = append(out.AdditionalGroups, int(gid))
	}
	if p.ConsoleSize != nil {
		out.ConsoleWidth, out.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
			Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		out.Rlimits = append(out.Rlimits, configs.Rlimit{Type: rlimits[r.Type], Hard: r.Hard, Soft: r.Soft})
	}
	return out
}
