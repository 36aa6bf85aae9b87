package task

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// serviceV2 is the name of version 2 of the service. Its messages are those of
// version 3 field by field, so that the same methods answer both; a test
// compares the descriptors.
const serviceV2 = "containerd.task.v2.Task"

func registerV2(server *ttrpc.Server, s taskapi.TTRPCTaskService) {
	server.RegisterService(serviceV2, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State": method(s.State), "Create": method(s.Create), "Start": method(s.Start), "Delete": method(s.Delete),
		"Pids": method(s.Pids), "Pause": method(s.Pause), "Resume": method(s.Resume), "Checkpoint": method(s.Checkpoint),
		"Kill": method(s.Kill), "Exec": method(s.Exec), "ResizePty": method(s.ResizePty), "CloseIO": method(s.CloseIO),
		"Update": method(s.Update), "Wait": method(s.Wait), "Stats": method(s.Stats), "Connect": method(s.Connect),
		"Shutdown": method(s.Shutdown),
	}})
}

// message is a pointer to a request.
type message[T any] interface {
	*T
	proto.Message
}

func method[T any, Req message[T], Resp proto.Message](do func(context.Context, Req) (Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		req := Req(new(T))
		if err := unmarshal(req); err != nil {
			return nil, err
		}
		return do(ctx, req)
	}
}
