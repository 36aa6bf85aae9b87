package agentclient

import (
	"context"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// UpdateInterface has the agent configure the interface with the MAC of want,
// for which it waits.
func (c *Client) UpdateInterface(ctx context.Context, want *pb.Interface) error {
	_, err := call(ctx, "UpdateInterface", c.deadlines.Sandbox, c.agent.UpdateInterface,
		&pb.UpdateInterfaceRequest{Interface: want})
	return err
}

// UpdateRoutes replaces the guest's routes, but for those that its kernel makes
// for addresses.
func (c *Client) UpdateRoutes(ctx context.Context, routes []*pb.Route) error {
	_, err := call(ctx, "UpdateRoutes", c.deadlines.Sandbox, c.agent.UpdateRoutes,
		&pb.UpdateRoutesRequest{Routes: &pb.Routes{Routes: routes}})
	return err
}

// AddARPNeighbors adds entries to the guest's ARP and NDP tables.
func (c *Client) AddARPNeighbors(ctx context.Context, neighbors []*pb.ARPNeighbor) error {
	_, err := call(ctx, "AddARPNeighbors", c.deadlines.Sandbox, c.agent.AddARPNeighbors,
		&pb.AddARPNeighborsRequest{Neighbors: &pb.ARPNeighbors{ARPNeighbors: neighbors}})
	return err
}
