package task

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"

	v2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestBothVersionsHaveTheSameMessages is what lets one set of methods answer
// both.
func TestBothVersionsHaveTheSameMessages(t *testing.T) {
	two := v2.File_runtime_task_v2_shim_proto.Services().Get(0).Methods()
	three := taskapi.File_runtime_task_v3_shim_proto.Services().Get(0).Methods()
	if two.Len() != three.Len() {
		t.Fatalf("version 2 has %d methods, version 3 %d", two.Len(), three.Len())
	}
	for i := range two.Len() {
		a := two.Get(i)
		b := three.ByName(a.Name())
		if b == nil {
			t.Errorf("version 3 has no %s", a.Name())
			continue
		}
		same(t, a.Input(), b.Input())
		same(t, a.Output(), b.Output())
	}
}

func same(t *testing.T, a, b protoreflect.MessageDescriptor) {
	t.Helper()
	if a.Fields().Len() != b.Fields().Len() {
		t.Errorf("%s and %s have %d and %d fields", a.FullName(), b.FullName(), a.Fields().Len(), b.Fields().Len())
	}
	for i := range a.Fields().Len() {
		f := a.Fields().Get(i)
		g := b.Fields().ByNumber(f.Number())
		if g == nil || f.Name() != g.Name() || f.Kind() != g.Kind() || f.Cardinality() != g.Cardinality() {
			t.Errorf("%s is not %v", f.FullName(), g)
			continue
		}
		if f.Kind() == protoreflect.MessageKind && f.Message().FullName() != g.Message().FullName() {
			same(t, f.Message(), g.Message())
		}
	}
}

// serve returns a connection to a service without containers.
func serve(t *testing.T) *ttrpc.Client {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	New("ns", log.L, nil, func(string, any) {}, func() {}).Register(server)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(context.Background(), l) })
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
		serving.Wait()
	})
	return client
}

func TestEveryMethodOfBothVersionsIsAnswered(t *testing.T) {
	conn := serve(t)
	two, three := v2.NewTTRPCTaskClient(conn), taskapi.NewTTRPCTaskClient(conn)
	ctx := t.Context()
	notFound := map[string]func() error{
		"State":  func() error { _, err := two.State(ctx, &v2.StateRequest{ID: "c"}); return err },
		"Start":  func() error { _, err := two.Start(ctx, &v2.StartRequest{ID: "c"}); return err },
		"Delete": func() error { _, err := two.Delete(ctx, &v2.DeleteRequest{ID: "c"}); return err },
		"Pids":   func() error { _, err := two.Pids(ctx, &v2.PidsRequest{ID: "c"}); return err },
		"Pause":  func() error { _, err := two.Pause(ctx, &v2.PauseRequest{ID: "c"}); return err },
		"Resume": func() error { _, err := two.Resume(ctx, &v2.ResumeRequest{ID: "c"}); return err },
		"Kill":   func() error { _, err := two.Kill(ctx, &v2.KillRequest{ID: "c", Signal: 9}); return err },
		"ResizePty": func() error {
			_, err := two.ResizePty(ctx, &v2.ResizePtyRequest{ID: "c"})
			return err
		},
		"CloseIO": func() error { _, err := two.CloseIO(ctx, &v2.CloseIORequest{ID: "c", Stdin: true}); return err },
		"Wait":    func() error { _, err := two.Wait(ctx, &v2.WaitRequest{ID: "c"}); return err },
		"Stats":   func() error { _, err := two.Stats(ctx, &v2.StatsRequest{ID: "c"}); return err },
		"Exec": func() error {
			_, err := two.Exec(ctx, &v2.ExecProcessRequest{ID: "c", ExecID: "e", Spec: packed(t, "Process", `{"args":["x"],"cwd":"/"}`)})
			return err
		},
		"Update": func() error {
			_, err := two.Update(ctx, &v2.UpdateTaskRequest{ID: "c", Resources: packed(t, "LinuxResources", `{}`)})
			return err
		},
		"version 3": func() error { _, err := three.State(ctx, &taskapi.StateRequest{ID: "c"}); return err },
	}
	for name, call := range notFound {
		if err := errgrpc.ToNative(call()); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := two.Checkpoint(ctx, &v2.CheckpointTaskRequest{ID: "c"}); !errdefs.IsNotImplemented(errgrpc.ToNative(err)) {
		t.Errorf("Checkpoint: %v", err)
	}
	if _, err := two.Create(ctx, &v2.CreateTaskRequest{ID: "c", Checkpoint: "/x"}); !errdefs.IsNotImplemented(errgrpc.ToNative(err)) {
		t.Errorf("Create: %v", err)
	}
	if c, err := two.Connect(ctx, &v2.ConnectRequest{ID: "c"}); err != nil || c.ShimPid == 0 {
		t.Errorf("Connect: %v, %v", c, err)
	}
	if _, err := two.Shutdown(ctx, &v2.ShutdownRequest{ID: "c"}); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}
