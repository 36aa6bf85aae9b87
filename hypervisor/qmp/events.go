package qmp

import (
	"context"
	"slices"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// eventBacklog is how many events a subscription keeps for a slow reader: more than
// a VM that loses all its devices at once sends. Memory is taken for all of them.
const eventBacklog = 1024

// Subscription receives events of one connection. A reader that falls behind by
// more than 1024 events loses the oldest ones, and Dropped counts them: neither
// the connection nor another subscription is ever held up by it.
type Subscription struct {
	m       *Monitor
	names   []string // empty: all
	events  chan goqemu.Event
	dropped uint64 // guarded by m.mu
}

// Subscribe returns the events with the given names, or all, that arrive from now
// on. The caller closes the subscription.
func (m *Monitor) Subscribe(names ...string) *Subscription {
	s := &Subscription{m: m, names: names, events: make(chan goqemu.Event, eventBacklog)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.subs == nil { // the connection has ended
		close(s.events)
		return s
	}
	m.subs[s] = struct{}{}
	return s
}

// Events returns the channel of the subscription. It is closed by Close and when
// the connection ends; what had arrived before can still be read.
func (s *Subscription) Events() <-chan goqemu.Event { return s.events }

// Dropped is how many events were lost because they were not read in time.
func (s *Subscription) Dropped() uint64 {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return s.dropped
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if _, ok := s.m.subs[s]; ok {
		delete(s.m.subs, s)
		close(s.events)
	}
}

// Events is Subscribe to every event until ctx ends, for go-qemu.
func (m *Monitor) Events(ctx context.Context) (<-chan goqemu.Event, error) {
	s := m.Subscribe()
	context.AfterFunc(ctx, s.Close)
	return s.events, nil
}

// publish gives e to whom it interests. Only the reader calls it, so room made in
// a full channel stays room: nothing here waits.
func (m *Monitor) publish(e goqemu.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.subs {
		if len(s.names) > 0 && !slices.Contains(s.names, e.Event) {
			continue
		}
		if len(s.events) == cap(s.events) {
			select {
			case <-s.events:
				s.dropped++
			default: // read just now
			}
		}
		s.events <- e
	}
}
