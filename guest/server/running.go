package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// defaultChange bounds a change of a container whose caller set no deadline.
const defaultChange = 30 * time.Second

func (a *agent) PauseContainer(ctx context.Context, r *pb.PauseContainerRequest) (*emptypb.Empty, error) {
	ctx, cancel := ahead(ctx, defaultChange)
	defer cancel()
	return empty, a.containers.Pause(ctx, r.GetContainerId())
}

func (a *agent) ResumeContainer(ctx context.Context, r *pb.ResumeContainerRequest) (*emptypb.Empty, error) {
	ctx, cancel := ahead(ctx, defaultChange)
	defer cancel()
	return empty, a.containers.Resume(ctx, r.GetContainerId())
}

func (a *agent) UpdateContainer(ctx context.Context, r *pb.UpdateContainerRequest) (*emptypb.Empty, error) {
	ctx, cancel := ahead(ctx, defaultChange)
	defer cancel()
	return empty, a.containers.Update(ctx, r.GetContainerId(), r.GetResources())
}

func (a *agent) StatsContainer(_ context.Context, r *pb.StatsContainerRequest) (*pb.StatsContainerResponse, error) {
	return a.containers.Stats(r.GetContainerId())
}

// GetOOMEvent waits as long as the caller does: there may never be one.
func (a *agent) GetOOMEvent(ctx context.Context, _ *pb.GetOOMEventRequest) (*pb.OOMEvent, error) {
	id, err := a.containers.NextOOM(ctx)
	if err != nil {
		return nil, err
	}
	a.log.Warn("container out of memory", "id", id)
	return &pb.OOMEvent{ContainerId: id}, nil
}
