package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// unimplemented answers the methods of the protocol that this agent does not
// have, each by its name.
type unimplemented struct{}

func no[Resp any](method string) (*Resp, error) {
	return nil, fmt.Errorf("the agent has no %s: %w", method, errdefs.ErrNotImplemented)
}

func (unimplemented) UpdateEphemeralMounts(context.Context, *pb.UpdateEphemeralMountsRequest) (*emptypb.Empty, error) {
	return no[emptypb.Empty]("UpdateEphemeralMounts")
}

func (unimplemented) RemoveStaleVirtiofsShareMounts(context.Context, *pb.RemoveStaleVirtiofsShareMountsRequest) (*emptypb.Empty, error) {
	return no[emptypb.Empty]("RemoveStaleVirtiofsShareMounts")
}

func (unimplemented) GetDiagnosticData(context.Context, *pb.GetDiagnosticDataRequest) (*pb.GetDiagnosticDataResponse, error) {
	return no[pb.GetDiagnosticDataResponse]("GetDiagnosticData")
}

func (unimplemented) GetIPTables(context.Context, *pb.GetIPTablesRequest) (*pb.GetIPTablesResponse, error) {
	return no[pb.GetIPTablesResponse]("GetIPTables")
}

func (unimplemented) SetIPTables(context.Context, *pb.SetIPTablesRequest) (*pb.SetIPTablesResponse, error) {
	return no[pb.SetIPTablesResponse]("SetIPTables")
}

func (unimplemented) GetMetrics(context.Context, *pb.GetMetricsRequest) (*pb.Metrics, error) {
	return no[pb.Metrics]("GetMetrics")
}

func (unimplemented) MemAgentMemcgSet(context.Context, *pb.MemAgentMemcgConfig) (*emptypb.Empty, error) {
	return no[emptypb.Empty]("MemAgentMemcgSet")
}

func (unimplemented) MemAgentCompactSet(context.Context, *pb.MemAgentCompactConfig) (*emptypb.Empty, error) {
	return no[emptypb.Empty]("MemAgentCompactSet")
}

func (unimplemented) MemHotplugByProbe(context.Context, *pb.MemHotplugByProbeRequest) (*emptypb.Empty, error) {
	return no[emptypb.Empty]("MemHotplugByProbe")
}

func (unimplemented) AddSwap(context.Context, *pb.AddSwapRequest) (*emptypb.Empty, error) {
	return no[emptypb.Empty]("AddSwap")
}

func (unimplemented) AddSwapPath(context.Context, *pb.AddSwapPathRequest) (*emptypb.Empty, error) {
	return no[emptypb.Empty]("AddSwapPath")
}

func (unimplemented) GetVolumeStats(context.Context, *pb.VolumeStatsRequest) (*pb.VolumeStatsResponse, error) {
	return no[pb.VolumeStatsResponse]("GetVolumeStats")
}

func (unimplemented) ResizeVolume(context.Context, *pb.ResizeVolumeRequest) (*emptypb.Empty, error) {
	return no[emptypb.Empty]("ResizeVolume")
}

func (unimplemented) SetPolicy(context.Context, *pb.SetPolicyRequest) (*emptypb.Empty, error) {
	return no[emptypb.Empty]("SetPolicy")
}
