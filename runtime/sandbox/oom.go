package sandbox

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// oomKey is where an agent that counts says how many processes of a container
// were killed for want of memory (docs/stats-wire.md).
const oomKey = "memory.events.oom_kill"

// oomPause is the shortest time between two questions that fail.
const oomPause = time.Second

// oomCount is how many of these kills the sink was told of.
type oomCount struct{ told uint64 }

// watchOOM tells the sink of containers that have run out of memory, until the
// VM ends.
func (s *Sandbox) watchOOM(m *machine) {
	for m.ctx.Err() == nil {
		id, err := m.agent.GetOOMEvent(m.ctx)
		if errdefs.IsNotImplemented(err) {
			m.log.Info("the agent does not tell when a container runs out of memory")
			return
		}
		if err != nil {
			if m.ctx.Err() == nil {
				m.log.WithError(err).Warn("wait for containers that run out of memory")
			}
			select {
			case <-time.After(oomPause):
			case <-m.ctx.Done():
			}
			continue
		}
		p, _, err := s.find(id, "")
		if err != nil {
			m.log.Warnf("the agent says that %.140q has run out of memory, which is no container here", id)
			continue
		}
		count, known := s.oomKills(p.c, m)
		s.tellOOM(p.c, count, known)
	}
}

// checkOOM is called before an exit is told: an event that is still on its way
// is told first.
func (s *Sandbox) checkOOM(c *container, m *machine) {
	if count, known := s.oomKills(c, m); known && count > 0 {
		s.tellOOM(c, count, known)
	}
}

// tellOOM tells the sink of kills that it does not know yet. A container that
// has stopped is not spoken of any more.
func (s *Sandbox) tellOOM(c *container, count uint64, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init.state == Stopped || c.init.state == Deleted || known && count <= c.oom.told {
		return
	}
	c.oom.told = max(count, c.oom.told)
	s.sink.OOM(c.id)
}

// oomKills asks how many processes were killed. An agent that does not count
// them leaves it unknown.
func (s *Sandbox) oomKills(c *container, m *machine) (count uint64, known bool) {
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.Deadlines.Call.Std())
	defer cancel()
	if c.virtual != nil {
		return 0, false
	}
	var stats *pb.StatsContainerResponse
	stats, err := m.agent.StatsContainer(ctx, c.id)
	if err != nil {
		return 0, false
	}
	c.mu.Lock()
	c.stats = stats
	c.mu.Unlock()
	count, known = stats.GetCgroupStats().GetMemoryStats().GetStats()[oomKey]
	return count, known
}
