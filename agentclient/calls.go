package agentclient

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Process names a process of the guest: a container's own one (Exec is "") or
// one that was added to it.
type Process struct {
	Container string
	Exec      string
}

// Check asks whether the agent serves. An agent that answers anything but
// SERVING gives an error of class errdefs.ErrUnavailable.
func (c *Client) Check(ctx context.Context) error {
	resp, err := call(ctx, "Health.Check", c.deadlines.Query, c.health.Check, &pb.CheckRequest{})
	if err != nil {
		return err
	}
	if resp.GetStatus() != pb.HealthCheckResponse_SERVING {
		return fmt.Errorf("agent Health.Check: status %s: %w", resp.GetStatus(), errdefs.ErrUnavailable)
	}
	return nil
}

// Version returns the version of the agent and of its protocol.
func (c *Client) Version(ctx context.Context) (*pb.VersionCheckResponse, error) {
	return call(ctx, "Health.Version", c.deadlines.Query, c.health.Version, &pb.CheckRequest{})
}

// GetGuestDetails returns what the agent says of itself, and the size of the
// blocks in which its kernel takes memory.
func (c *Client) GetGuestDetails(ctx context.Context) (*pb.GuestDetailsResponse, error) {
	return call(ctx, "GetGuestDetails", c.deadlines.Query, c.agent.GetGuestDetails, &pb.GuestDetailsRequest{MemBlockSize: true})
}

// OnlineCPUMem has the agent bring online what was plugged into its VM: it waits
// for so many processors, and with memory for none.
func (c *Client) OnlineCPUMem(ctx context.Context, vcpus int, memory bool) error {
	_, err := call(ctx, "OnlineCPUMem", c.deadlines.Signal, c.agent.OnlineCPUMem,
		&pb.OnlineCPUMemRequest{Wait: vcpus > 0, NbCpus: uint32(vcpus), CpuOnly: !memory})
	return err
}

// Personality is what makes a guest one of its own.
type Personality struct {
	Entropy   []byte // 32 to 512 fresh random bytes
	Time      time.Time
	Hostname  string // empty: left as it is
	MachineID string // 32 hexadecimal digits, or empty
}

// sampleSize is how many random bytes a guest answers with.
const sampleSize = 16

// Personalise gives a guest, which may be the twin of others until then, what makes
// it one of its own. It comes first. The answer is what the guest draws from its
// generator now, for comparing guests. An agent of others gives
// errdefs.ErrNotImplemented.
func (c *Client) Personalise(ctx context.Context, who Personality) (sample []byte, err error) {
	resp, err := call(ctx, "Personalise", c.deadlines.Sandbox, c.guest.Personalise, &pb.PersonaliseRequest{
		Entropy: who.Entropy, UnixNanos: who.Time.UnixNano(), Hostname: who.Hostname, MachineId: who.MachineID,
	})
	if err != nil {
		return nil, err
	}
	if len(resp.GetSample()) != sampleSize {
		return nil, fmt.Errorf("agent Personalise: a sample of %d bytes: %w", len(resp.GetSample()), ErrBadReply)
	}
	return resp.GetSample(), nil
}

// SetGuestDateTime sets the guest's clock to t, in whole microseconds.
func (c *Client) SetGuestDateTime(ctx context.Context, t time.Time) error {
	_, err := call(ctx, "SetGuestDateTime", c.deadlines.Sandbox, c.agent.SetGuestDateTime,
		&pb.SetGuestDateTimeRequest{Sec: t.Unix(), Usec: int64(t.Nanosecond() / 1000)})
	return err
}

// ReseedRandomDev credits data, which should be fresh random bytes of the
// host, to the guest's random number generator.
func (c *Client) ReseedRandomDev(ctx context.Context, data []byte) error {
	_, err := call(ctx, "ReseedRandomDev", c.deadlines.Sandbox, c.agent.ReseedRandomDev,
		&pb.ReseedRandomDevRequest{Data: data})
	return err
}

// CreateSandbox gives the guest what belongs to the pod: its name, DNS,
// storages shared by its containers. It comes before the first container.
func (c *Client) CreateSandbox(ctx context.Context, req *pb.CreateSandboxRequest) error {
	_, err := call(ctx, "CreateSandbox", c.deadlines.Sandbox, c.agent.CreateSandbox, req)
	return err
}

// DestroySandbox undoes CreateSandbox. Containers must be gone before.
func (c *Client) DestroySandbox(ctx context.Context) error {
	_, err := call(ctx, "DestroySandbox", c.deadlines.Sandbox, c.agent.DestroySandbox, &pb.DestroySandboxRequest{})
	return err
}

// CreateContainer mounts the storages and creates the container, whose process
// then waits for StartContainer. On an error nothing of it stays in the guest.
func (c *Client) CreateContainer(ctx context.Context, req *pb.CreateContainerRequest) error {
	_, err := call(ctx, "CreateContainer", c.deadlines.Create, c.agent.CreateContainer, req)
	return err
}

// StartContainer lets the process of a created container run.
func (c *Client) StartContainer(ctx context.Context, id string) error {
	_, err := call(ctx, "StartContainer", c.deadlines.Start, c.agent.StartContainer,
		&pb.StartContainerRequest{ContainerId: id})
	return err
}

// ExecProcess starts one more process in a running container.
func (c *Client) ExecProcess(ctx context.Context, req *pb.ExecProcessRequest) error {
	_, err := call(ctx, "ExecProcess", c.deadlines.Create, c.agent.ExecProcess, req)
	return err
}

// SignalProcess sends a signal to one process. SIGKILL to the container's own
// process reaches all processes of the container.
func (c *Client) SignalProcess(ctx context.Context, p Process, sig syscall.Signal) error {
	if p.Exec == "" && sig == syscall.SIGKILL {
		return c.SignalAll(ctx, p.Container, sig)
	}
	exec := p.Exec
	if exec == "" {
		exec = p.Container // here, "" is all of them
	}
	return c.signal(ctx, p.Container, exec, sig)
}

// SignalAll sends a signal to every process of a container: its own, its execs
// and all that these have started, at one moment.
func (c *Client) SignalAll(ctx context.Context, container string, sig syscall.Signal) error {
	return c.signal(ctx, container, "", sig)
}

func (c *Client) signal(ctx context.Context, container, exec string, sig syscall.Signal) error {
	_, err := call(ctx, "SignalProcess", c.deadlines.Signal, c.agent.SignalProcess,
		&pb.SignalProcessRequest{ContainerId: container, ExecId: exec, Signal: uint32(sig)})
	return err
}

// WaitProcess returns the exit status of a process, 128 plus the signal's
// number if a signal ended it. It waits as long as ctx lets it, and answers at
// once for a process that has ended and is not removed. Any number of
// goroutines may wait for one process. Output may still be unread.
func (c *Client) WaitProcess(ctx context.Context, p Process) (int, error) {
	resp, err := call(ctx, "WaitProcess", unbounded, c.agent.WaitProcess,
		&pb.WaitProcessRequest{ContainerId: p.Container, ExecId: p.Exec})
	if err != nil {
		return 0, err
	}
	return int(resp.GetStatus()), nil
}

// RemoveContainer removes a container that has ended, with its mounts. A
// container that is not there gives errdefs.ErrNotFound, one that runs
// errdefs.ErrFailedPrecondition.
func (c *Client) RemoveContainer(ctx context.Context, id string) error {
	_, err := call(ctx, "RemoveContainer", c.deadlines.Remove, c.agent.RemoveContainer,
		&pb.RemoveContainerRequest{ContainerId: id})
	return err
}

// GetOOMEvent waits, as long as ctx lets it, for the next container that ran
// out of memory and returns its id. Only one call at a time should wait: an
// event goes to one of them. An agent that does not watch for it gives
// errdefs.ErrNotImplemented.
func (c *Client) GetOOMEvent(ctx context.Context) (string, error) {
	resp, err := call(ctx, "GetOOMEvent", unbounded, c.agent.GetOOMEvent, &pb.GetOOMEventRequest{})
	if err != nil {
		return "", err
	}
	return resp.GetContainerId(), nil
}

// PauseContainer freezes all processes of a container.
func (c *Client) PauseContainer(ctx context.Context, id string) error {
	_, err := call(ctx, "PauseContainer", c.deadlines.Signal, c.agent.PauseContainer, &pb.PauseContainerRequest{ContainerId: id})
	return err
}

// ResumeContainer lets the processes of a container run again.
func (c *Client) ResumeContainer(ctx context.Context, id string) error {
	_, err := call(ctx, "ResumeContainer", c.deadlines.Signal, c.agent.ResumeContainer, &pb.ResumeContainerRequest{ContainerId: id})
	return err
}

// UpdateContainer changes the limits of a container. A number that is 0 leaves
// the limit as it is.
func (c *Client) UpdateContainer(ctx context.Context, id string, resources *pb.LinuxResources) error {
	_, err := call(ctx, "UpdateContainer", c.deadlines.Signal, c.agent.UpdateContainer,
		&pb.UpdateContainerRequest{ContainerId: id, Resources: resources})
	return err
}

// Bounds of a reply to StatsContainer. memory.stat has some 60 lines, and a
// guest as many disks and interfaces as the VM has slots.
const (
	maxStatsKeys = 1024
	maxStatsList = 4096
)

// StatsContainer returns what a container has used so far, as docs/stats-wire.md
// says. It answers for one that has stopped and is not removed.
func (c *Client) StatsContainer(ctx context.Context, id string) (*pb.StatsContainerResponse, error) {
	resp, err := call(ctx, "StatsContainer", c.deadlines.Query, c.agent.StatsContainer, &pb.StatsContainerRequest{ContainerId: id})
	if err != nil {
		return nil, err
	}
	cgroup := resp.GetCgroupStats()
	blkio := cgroup.GetBlkioStats()
	keys := max(len(cgroup.GetMemoryStats().GetStats()), len(cgroup.GetHugetlbStats()))
	list := max(len(resp.GetNetworkStats()), len(blkio.GetIoServiceBytesRecursive()), len(blkio.GetIoServicedRecursive()))
	if keys > maxStatsKeys || list > maxStatsList {
		return nil, fmt.Errorf("agent StatsContainer: %w: %d keys and a list of %d, at most %d and %d", ErrBadReply, keys, list, maxStatsKeys, maxStatsList)
	}
	return resp, nil
}
