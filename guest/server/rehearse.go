package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
)

// Rehearse makes calls as the start of a pod brings them to a server of its own of c,
// and ends it: what Go makes of a message when it meets it for the first time is made
// then, once for all that go on from a template. Nothing is changed by it. Those calls
// that would change something are refused, for a reason that Rehearse gives them. The
// caller closes c.Ready before.
func Rehearse(ctx context.Context, c Config) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("rehearse calls: %w", err)
		}
	}()
	c.Log = slog.New(slog.DiscardHandler) // that they are refused is nobody's concern
	s, err := New(c)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", "") // the kernel chooses an abstract name, unix(7)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, s, l) }()
	defer func() {
		stop()
		err = errors.Join(err, <-served)
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	return rehearse(ctx, client)
}

func rehearse(ctx context.Context, client *ttrpc.Client) error {
	agent := pb.NewAgentServiceClient(client)
	for _, call := range []struct {
		name    string
		refused bool
		make    func() error
	}{
		{"Check", false, func() error {
			_, err := pb.NewHealthClient(client).Check(ctx, &pb.CheckRequest{})
			return err
		}},
		{"Personalise", true, func() error { // too short a seed
			_, err := pb.NewGuestServiceClient(client).Personalise(ctx, &pb.PersonaliseRequest{Entropy: []byte{0}, MachineId: "0", Hostname: "h", UnixNanos: 1})
			return err
		}},
		{"GetGuestDetails", false, func() error {
			_, err := agent.GetGuestDetails(ctx, &pb.GuestDetailsRequest{MemBlockSize: true})
			return err
		}},
		{"CreateSandbox", true, func() error { // no name of a sandbox
			_, err := agent.CreateSandbox(ctx, &pb.CreateSandboxRequest{SandboxId: "/", Hostname: "h"})
			return err
		}},
		{"CreateContainer", true, func() error { // no layers
			_, err := agent.CreateContainer(ctx, rehearsal())
			return err
		}},
	} {
		err := call.make()
		if call.refused && errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
			err = nil
		} else if call.refused {
			err = fmt.Errorf("it was not refused: %w", err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", call.name, err)
		}
	}
	return nil
}

// rehearsal is a request that has every kind of message in it that containerd's default
// specification leads to (pkg/oci/spec.go).
func rehearsal() *pb.CreateContainerRequest {
	capabilities := []string{"CAP_CHOWN"}
	return &pb.CreateContainerRequest{
		ContainerId: "rehearsal", ExecId: "rehearsal",
		Storages: []*pb.Storage{{
			Driver: "blk", Source: "01/01", Fstype: "ext4", MountPoint: storage.RootfsPath(storage.Base, "rehearsal"),
			Options: []string{"rw", "X-kata.overlay-upper", "X-kata.multi-layer=true"},
		}},
		OCI: &pb.Spec{
			Process: &pb.Process{
				Args: []string{"true"}, Cwd: "/", Env: []string{"PATH=/bin"}, User: &pb.User{AdditionalGids: []uint32{1}},
				Rlimits:      []*pb.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
				Capabilities: &pb.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
			},
			Root:        &pb.Root{Path: "/"},
			Hostname:    "h",
			Mounts:      []*pb.Mount{{Destination: "/proc", Source: "proc", Type: "proc", Options: []string{"nosuid"}}},
			Annotations: map[string]string{"a": "b"},
			Linux: &pb.Linux{
				Namespaces:  []*pb.LinuxNamespace{{Type: "pid"}},
				CgroupsPath: "/rehearsal", MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/bus"},
				Resources: &pb.LinuxResources{
					Devices: []*pb.LinuxDeviceCgroup{{Access: "rwm"}}, Memory: &pb.LinuxMemory{}, CPU: &pb.LinuxCPU{Shares: 1}, Pids: &pb.LinuxPids{},
				},
			},
		},
	}
}
