package task

import (
	"context"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

// notImplemented is the answer to what this version does not do.
func notImplemented(what string) error {
	return toGRPC(fmt.Errorf("%s: this version of erofsvm does not do it: %w", what, errdefs.ErrNotImplemented))
}

// noExec refuses calls that mean a process added by Exec: there are none.
func noExec(execID string) error {
	if execID != "" {
		return notImplemented("exec " + execID)
	}
	return nil
}

// Exec is not implemented.
func (*Service) Exec(context.Context, *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("exec")
}

// ResizePty is not implemented.
func (*Service) ResizePty(context.Context, *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("resize of a terminal")
}

// Pause is not implemented.
func (*Service) Pause(context.Context, *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("pause")
}

// Resume is not implemented.
func (*Service) Resume(context.Context, *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("resume")
}

// Checkpoint is not implemented.
func (*Service) Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("checkpoint")
}

// Update is not implemented.
func (*Service) Update(context.Context, *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("update of resources")
}

// Stats is not implemented.
func (*Service) Stats(context.Context, *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	return nil, notImplemented("stats")
}
