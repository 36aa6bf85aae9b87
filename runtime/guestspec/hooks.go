package guestspec

import (
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// HostHooks are programs of the host, in the order in which they run.
type HostHooks struct {
	Create    []specs.Hook // prestart, then createRuntime: before Create returns
	Poststart []specs.Hook // after the process was started
	Poststop  []specs.Hook // after the container was deleted
}

// hooks separates those of the runtime's namespaces, which are the host's, from
// those of the container's.
func (r *Result) hooks(h *specs.Hooks, pass bool) (*pb.Hooks, error) {
	if h == nil {
		return nil, nil
	}
	//lint:ignore SA1019 prestart is deprecated, and a spec can still have it.
	prestart := h.Prestart
	for _, group := range []struct {
		name  string
		hooks []specs.Hook
	}{
		{"prestart", prestart}, {"createRuntime", h.CreateRuntime}, {"createContainer", h.CreateContainer},
		{"startContainer", h.StartContainer}, {"poststart", h.Poststart}, {"poststop", h.Poststop},
	} {
		for _, hook := range group.hooks {
			if !path.IsAbs(hook.Path) {
				return nil, invalid("hooks.%s: path %q is not absolute", group.name, hook.Path)
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return nil, invalid("hooks.%s: %s: timeout %d is not more than 0", group.name, hook.Path, *hook.Timeout)
			}
		}
	}
	r.Hooks = HostHooks{
		Create:    append(append([]specs.Hook{}, prestart...), h.CreateRuntime...),
		Poststart: h.Poststart,
		Poststop:  h.Poststop,
	}
	if len(h.CreateContainer)+len(h.StartContainer) == 0 {
		return nil, nil
	}
	if !pass {
		return nil, unsupported("hooks.createContainer and hooks.startContainer run in the guest, where only what the guest's image and the container's have can run: " +
			"leave them out, or set guest.hooks = \"pass\" in the configuration")
	}
	return &pb.Hooks{CreateContainer: guestHooks(h.CreateContainer), StartContainer: guestHooks(h.StartContainer)}, nil
}

func guestHooks(in []specs.Hook) []*pb.Hook {
	var out []*pb.Hook
	for _, h := range in {
		out = append(out, &pb.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: int64(value(h.Timeout, 0))})
	}
	return out
}
