package boot

import (
	"context"
	"fmt"
	"sync"
)

// Demand loads the modules of stages that only some pods need, when they are
// first needed. It may be used from any goroutine.
type Demand struct {
	load func(stage string) error

	mu     sync.Mutex
	stages map[string]*loading
}

// loading is one attempt at a stage; err may be read once done is closed.
type loading struct {
	done chan struct{}
	err  error
}

// NewDemand returns a Demand for the modules of a list, whose files are in dir.
func NewDemand(dir string, modules []Module) *Demand {
	return newDemand(func(stage string) error { return LoadModules(dir, stage, modules) })
}

func newDemand(load func(stage string) error) *Demand {
	return &Demand{load: load, stages: map[string]*loading{}}
}

// Load returns when the modules of a stage are loaded. The first caller loads
// them, which no context can end; those who come meanwhile wait for it, until
// their ctx ends. What was loaded is not loaded again; after a failure, which
// names each module that failed, the next caller tries again.
func (d *Demand) Load(ctx context.Context, stage string) error {
	l, mine := d.attempt(stage)
	if mine {
		d.finish(stage, l)
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for the modules of stage %s: %w", stage, ctx.Err())
	}
	if l.err != nil {
		return fmt.Errorf("modules of stage %s: %w", stage, l.err)
	}
	return nil
}

// attempt returns the attempt that stands, or one that the caller has to finish.
func (d *Demand) attempt(stage string) (l *loading, mine bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l, there := d.stages[stage]; there {
		return l, false
	}
	l = &loading{done: make(chan struct{})}
	d.stages[stage] = l
	return l, true
}

func (d *Demand) finish(stage string, l *loading) {
	defer close(l.done)
	if l.err = d.load(stage); l.err == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.stages, stage)
}
