package task

import (
	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/erofsvm/erofsvm/runtime/sandbox"
)

// Topics of containerd's task events (core/runtime/events.go).
const (
	topicCreate      = "/tasks/create"
	topicStart       = "/tasks/start"
	topicExecAdded   = "/tasks/exec-added"
	topicExecStarted = "/tasks/exec-started"
	topicOOM         = "/tasks/oom"
	topicPaused      = "/tasks/paused"
	topicResumed     = "/tasks/resumed"
	topicExit        = "/tasks/exit"
	topicDelete      = "/tasks/delete"
)

// events turns what a sandbox reports into containerd's events.
type events struct {
	publish func(topic string, event any)
}

var _ sandbox.Sink = events{}

func (e events) Created(req *sandbox.CreateRequest, pid int) {
	ev := &eventsapi.TaskCreate{
		ContainerID: req.ID,
		Bundle:      req.Bundle,
		IO: &eventsapi.TaskIO{
			Stdin: req.Streams.Stdin, Stdout: req.Streams.Stdout, Stderr: req.Streams.Stderr, Terminal: req.Streams.Terminal,
		},
		Pid: uint32(pid),
	}
	for _, m := range req.Rootfs {
		ev.Rootfs = append(ev.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	e.publish(topicCreate, ev)
}

func (e events) Started(id string, pid int) {
	e.publish(topicStart, &eventsapi.TaskStart{ContainerID: id, Pid: uint32(pid)})
}

func (e events) ExecAdded(id, exec string) {
	e.publish(topicExecAdded, &eventsapi.TaskExecAdded{ContainerID: id, ExecID: exec})
}

func (e events) ExecStarted(id, exec string, pid int) {
	e.publish(topicExecStarted, &eventsapi.TaskExecStarted{ContainerID: id, ExecID: exec, Pid: uint32(pid)})
}

func (e events) OOM(id string) { e.publish(topicOOM, &eventsapi.TaskOOM{ContainerID: id}) }

func (e events) Paused(id string) { e.publish(topicPaused, &eventsapi.TaskPaused{ContainerID: id}) }

func (e events) Resumed(id string) {
	e.publish(topicResumed, &eventsapi.TaskResumed{ContainerID: id})
}

// Exited names the process: by the id of the exec, or by that of the container
// for its own.
func (e events) Exited(id, exec string, pid int, exit sandbox.Exit) {
	process := exec
	if process == "" {
		process = id
	}
	e.publish(topicExit, &eventsapi.TaskExit{
		ContainerID: id, ID: process, Pid: uint32(pid),
		ExitStatus: uint32(exit.Status), ExitedAt: timestamppb.New(exit.At),
	})
}

// Deleted is of the container: it has no ID of a process, as that of runc's shim
// has none.
func (e events) Deleted(id string, pid int, exit sandbox.Exit) {
	e.publish(topicDelete, &eventsapi.TaskDelete{
		ContainerID: id, Pid: uint32(pid),
		ExitStatus: uint32(exit.Status), ExitedAt: timestamppb.New(exit.At),
	})
}
