package e2etest

import (
	"context"
	"fmt"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
)

// marker is an event of our own, which comes after all that was there before.
const marker = "/tasks/marker"

// Events are the events of tasks from the moment it was made.
type Events struct {
	bed    *Bed
	id     string
	stream <-chan *events.Envelope
	errs   <-chan error
}

// Events subscribes to the events of a container's task, or with "" of all.
func (b *Bed) Events(t *testing.T, id string) *Events {
	t.Helper()
	ctx, cancel := context.WithCancel(b.Context(context.Background()))
	t.Cleanup(cancel)
	e := &Events{bed: b, id: id}
	e.stream, e.errs = b.Client().EventService().Subscribe(ctx, `topic~="/tasks/"`)
	// Subscribe returns before the daemon has taken note of it. A marker that
	// comes back says that it has.
	for deadline := time.Now().Add(Step); ; {
		id := e.mark(t)
		for {
			event, ok := e.within(t, 200*time.Millisecond)
			if ok && event == (taskEvent{marker, id}) {
				return e
			}
			if !ok {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no event within %v of subscribing", Step)
		}
	}
}

type taskEvent struct{ topic, id string }

// mark publishes a marker and returns its id.
func (e *Events) mark(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(e.bed.Context(t.Context()), Step)
	defer cancel()
	id := fmt.Sprint("marker-", serial.Add(1))
	if err := e.bed.Client().EventService().Publish(ctx, marker, &apievents.TaskStart{ContainerID: id}); err != nil {
		t.Fatalf("publish a marker: %v", err)
	}
	return id
}

// next waits for an event.
func (e *Events) next(t *testing.T) taskEvent {
	t.Helper()
	event, ok := e.within(t, Step)
	if !ok {
		t.Fatalf("no event within %v", Step)
	}
	return event
}

func (e *Events) within(t *testing.T, d time.Duration) (taskEvent, bool) {
	t.Helper()
	select {
	case envelope := <-e.stream:
		event, err := typeurl.UnmarshalAny(envelope.Event)
		if err != nil {
			t.Fatalf("event %s: %v", envelope.Topic, err)
		}
		named, ok := event.(interface{ GetContainerID() string })
		if !ok {
			t.Fatalf("event %s has no container", envelope.Topic)
		}
		return taskEvent{envelope.Topic, named.GetContainerID()}, true
	case err := <-e.errs:
		t.Fatalf("events: %v", err)
	case <-time.After(d):
	}
	return taskEvent{}, false
}

// Until returns the container's topics up to and with the given one.
func (e *Events) Until(t *testing.T, topic string) []string {
	t.Helper()
	var topics []string
	for {
		event := e.next(t)
		if event.topic == marker || e.id != "" && event.id != e.id {
			continue
		}
		topics = append(topics, event.topic)
		if event.topic == topic {
			return topics
		}
	}
}

// Of returns the topics of everything that has been published about a container
// until now.
func (e *Events) Of(t *testing.T, id string) []string {
	t.Helper()
	last := taskEvent{marker, e.mark(t)}
	var topics []string
	for {
		event := e.next(t)
		if event == last {
			return topics
		}
		if event.id == id {
			topics = append(topics, event.topic)
		}
	}
}
