package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// defaultInterface bounds the wait for an interface whose caller set no deadline.
const defaultInterface = 30 * time.Second

func (a *agent) UpdateInterface(ctx context.Context, r *pb.UpdateInterfaceRequest) (*pb.Interface, error) {
	ctx, cancel := ahead(ctx, defaultInterface)
	defer cancel()
	return a.network.UpdateInterface(ctx, r.GetInterface())
}

func (a *agent) ListInterfaces(context.Context, *pb.ListInterfacesRequest) (*pb.Interfaces, error) {
	return a.network.ListInterfaces()
}

func (a *agent) UpdateRoutes(_ context.Context, r *pb.UpdateRoutesRequest) (*pb.Routes, error) {
	return a.network.UpdateRoutes(r.GetRoutes())
}

func (a *agent) ListRoutes(context.Context, *pb.ListRoutesRequest) (*pb.Routes, error) {
	return a.network.ListRoutes()
}

func (a *agent) AddARPNeighbors(_ context.Context, r *pb.AddARPNeighborsRequest) (*emptypb.Empty, error) {
	return empty, a.network.AddARPNeighbors(r.GetNeighbors())
}
