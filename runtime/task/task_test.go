package task

import (
	"slices"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/erofsvm/erofsvm/runtime/sandbox"
)

func packed(t *testing.T, name, text string) *anypb.Any {
	t.Helper()
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/" + name, Value: []byte(text)}
}

func TestSpecsArriveAsContainerdPacksThem(t *testing.T) {
	// The import of core/runtime registers the types as containerd does.
	want := specs.Process{Args: []string{"a"}, Cwd: "/"}
	any, err := typeurl.MarshalAnyToProto(&want)
	if err != nil {
		t.Fatal(err)
	}
	var got specs.Process
	if err := fromAny(any, "Process", &got); err != nil || got.Args[0] != "a" {
		t.Errorf("%+v, %v", got, err)
	}
	for name, bad := range map[string]*anypb.Any{
		"none": nil, "another type": packed(t, "Spec", "{}"), "no JSON": packed(t, "Process", "{"),
		"no spec": {TypeUrl: "Process", Value: []byte("{}")},
		"long":    {TypeUrl: any.TypeUrl, Value: make([]byte, maxAny+1)},
	} {
		if err := fromAny(bad, "Process", &got); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEventsHaveContainerdsTopicsAndIds(t *testing.T) {
	type event struct {
		topic string
		event any
	}
	var got []event
	e := events{func(topic string, ev any) { got = append(got, event{topic, ev}) }}
	exit := sandbox.Exit{Status: 3, At: time.Unix(1, 0)}
	e.Created(&sandbox.CreateRequest{ID: "c", Bundle: "/b"}, 7)
	e.Started("c", 7)
	e.ExecAdded("c", "e")
	e.ExecStarted("c", "e", 7)
	e.OOM("c")
	e.Paused("c")
	e.Resumed("c")
	e.Exited("c", "e", 7, exit)
	e.Exited("c", "", 7, exit)
	e.Deleted("c", 7, exit)
	for _, ev := range got {
		if want := runtime.GetTopic(ev.event); ev.topic != want {
			t.Errorf("%T goes to %s, containerd's is %s", ev.event, ev.topic, want)
		}
	}
	var ids []string
	for _, ev := range got {
		switch ev := ev.event.(type) {
		case *eventsapi.TaskExit:
			ids = append(ids, ev.ContainerID+"/"+ev.ID)
		case *eventsapi.TaskDelete:
			ids = append(ids, ev.ContainerID+"/"+ev.ID)
		}
	}
	if want := []string{"c/e", "c/c", "c/"}; !slices.Equal(ids, want) || len(got) != 10 {
		t.Errorf("%d events, ids %q, want %q", len(got), ids, want)
	}
}

func TestEveryStateHasAStatus(t *testing.T) {
	for state, want := range map[sandbox.State]task.Status{
		sandbox.Creating: task.Status_CREATED, sandbox.Created: task.Status_CREATED, sandbox.Running: task.Status_RUNNING,
		sandbox.Paused: task.Status_PAUSED, sandbox.Stopped: task.Status_STOPPED, sandbox.Deleted: task.Status_STOPPED,
	} {
		if got := taskStatus(state); got != want {
			t.Errorf("%s is %s, want %s", state, got, want)
		}
	}
}
