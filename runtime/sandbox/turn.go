package sandbox

import (
	"context"
	"path/filepath"
	"runtime"
	"time"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/runtime/turnstile"
)

// longestTurn bounds how long a start waits for those of others. What is slow for
// longer than that will not get faster by more waiting.
const longestTurn = time.Minute

// startsOf is what the starts of this host's virtual machines go through.
func startsOf(c configs.Config) turnstile.Turnstile {
	return turnstile.Turnstile{Dir: filepath.Join(c.CacheDir, "starts"), Places: c.Hypervisor.Starts * runtime.NumCPU()}
}

// takeTurn waits until there are not too many others on their way. A start is never
// given up for it.
func (m *machine) takeTurn(ctx context.Context) {
	begun := time.Now()
	defer m.trace.phase("turn", begun)
	ctx, cancel := context.WithTimeout(ctx, longestTurn)
	defer cancel()
	place, err := startsOf(m.cfg).Enter(ctx)
	if err != nil {
		if m.ctx.Err() == nil {
			m.log.WithError(err).Warn("hypervisor.starts: the virtual machine starts all the same")
		}
		return
	}
	m.mu.Lock()
	over := m.turnOver
	if !over {
		m.place = place
	}
	m.mu.Unlock()
	if over {
		m.leave(place)
	}
}

// endTurn lets the next one start: this start is over, whatever came of it. It may be
// called more than once, and before there was a turn.
func (m *machine) endTurn() {
	m.mu.Lock()
	place := m.place
	m.place, m.turnOver = nil, true
	m.mu.Unlock()
	if place != nil {
		m.leave(place)
	}
}

func (m *machine) leave(place *turnstile.Place) {
	if err := place.Leave(); err != nil {
		m.log.WithError(err).Warn("hypervisor.starts: a place may stay taken until this process ends")
	}
}
