package sandbox

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/runtime/hook"
)

// runHooks runs hooks of the host in their order and stops at the first that
// fails. What a caller has begun is finished: its context does not end them, but
// their own time.
func (s *Sandbox) runHooks(ctx context.Context, c *container, m *machine, hooks []specs.Hook, status specs.ContainerState) error {
	ctx = context.WithoutCancel(ctx)
	state := specs.State{
		Version: specs.Version, ID: c.id, Status: status, Pid: m.pid(), Bundle: c.bundle, Annotations: c.annotations,
	}
	for _, h := range hooks {
		if err := hook.Run(ctx, h, state, m.cfg.Deadlines.Hook.Std()); err != nil {
			return err
		}
	}
	return nil
}
