package task

import (
	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/erofsvm/erofsvm/runtime/sandbox"
)

// Topics of containerd's task events (core/runtime/events.go).
const (
	topicCreate = "/tasks/create"
	topicStart  = "/tasks/start"
	topicExit   = "/tasks/exit"
	topicDelete = "/tasks/delete"
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

func (e events) Exited(id string, pid int, exit sandbox.Exit) {
	e.publish(topicExit, &eventsapi.TaskExit{
		ContainerID: id, ID: id, Pid: uint32(pid),
		ExitStatus: uint32(exit.Status), ExitedAt: timestamppb.New(exit.At),
	})
}

func (e events) Deleted(id string, pid int, exit sandbox.Exit) {
	e.publish(topicDelete, &eventsapi.TaskDelete{
		ContainerID: id, ID: id, Pid: uint32(pid),
		ExitStatus: uint32(exit.Status), ExitedAt: timestamppb.New(exit.At),
	})
}
