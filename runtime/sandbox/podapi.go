package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/configs"
)

// PodRequest asks for a pod that no container stands for.
type PodRequest struct {
	ID string
	// Bundle is where the record of the sandbox goes. There is no config.json.
	Bundle   string
	Hostname string
	// NetNS is the path of the pod's network namespace, "" for a new one.
	NetNS string
	// HostNetwork says that the pod is to have the host's, whatever NetNS is.
	HostNetwork bool
	// Cgroup is that of the host that is to be made for the pod, "" for that of the
	// shim.
	Cgroup string
	// Sysctls are those of the guest.
	Sysctls map[string]string
	// Mounts are for the containers of the pod that have none at these places.
	Mounts []specs.Mount
	Config configs.Config
	// Annotations are the pod's, which may change Config where that allows it.
	Annotations map[string]string
}

// PodInfo describes a pod.
type PodInfo struct {
	Pid     int // QEMU's, on the host; 0 before its start
	Created time.Time
	// Ready says that the pod was started and its VM has not ended.
	Ready bool
	// Ended says that it never will be again, and Exit how that came.
	Ended bool
	Exit  Exit
}

// held is the state of a pod that the Sandbox API holds; the sandbox's lock
// guards it.
type held struct {
	created time.Time
	started bool
	// ending says that the end of the VM was asked for.
	ending bool
	exit   Exit
	exited chan struct{} // closed when the VM is gone
}

// CreatePod begins to boot the VM of a pod and returns at once. The VM is the
// pod's until StopPod, whatever containers come and go.
func (s *Sandbox) CreatePod(req *PodRequest) error {
	if !isIdentifier(req.ID) {
		return fmt.Errorf("pod id %q: %w", req.ID, errdefs.ErrInvalidArgument)
	}
	cfg, err := configFor(req.Config, req.Annotations)
	if err != nil {
		return fmt.Errorf("pod %s: %w", req.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machine != nil {
		return fmt.Errorf("pod %s: this shim has a virtual machine already: %w", req.ID, errdefs.ErrAlreadyExists)
	}
	now := time.Now()
	s.pod = &pod{
		id: req.ID, sysctls: req.Sysctls, mounts: req.Mounts,
		api: &held{created: now, exited: make(chan struct{})},
	}
	s.machine = newMachine(s, cfg, identity{
		id: req.ID, bundle: req.Bundle, hostname: req.Hostname,
		netns: netns{path: req.NetNS, host: req.HostNetwork}, pod: true, begun: now,
		cgroup: req.Cgroup,
		launch: s.takeLaunch(),
	})
	s.machine.launch()
	return nil
}

// findPod returns the pod that the Sandbox API holds, with its VM.
func (s *Sandbox) findPod(id string) (*held, *machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pod == nil || s.pod.api == nil || s.pod.id != id {
		return nil, nil, fmt.Errorf("pod %s: %w", id, errdefs.ErrNotFound)
	}
	return s.pod.api, s.machine, nil
}

// StartPod waits until the pod can take containers. After an error it has ended.
func (s *Sandbox) StartPod(ctx context.Context, id string) (PodInfo, error) {
	h, m, err := s.findPod(id)
	if err != nil {
		return PodInfo{}, err
	}
	if err := m.await(ctx); err != nil {
		err = m.explain(ctx, err)
		if stopErr := s.StopPod(context.WithoutCancel(ctx), id); stopErr != nil {
			s.log.WithError(stopErr).Warn("end the virtual machine")
		}
		return PodInfo{}, fmt.Errorf("start pod %s: %w", id, err)
	}
	s.mu.Lock()
	h.started = true
	s.mu.Unlock()
	return s.Pod(id)
}

// Pod describes the pod.
func (s *Sandbox) Pod(id string) (PodInfo, error) {
	h, m, err := s.findPod(id)
	if err != nil {
		return PodInfo{}, err
	}
	info := PodInfo{Pid: m.pid()}
	s.mu.Lock()
	defer s.mu.Unlock()
	info.Created = h.created
	select {
	case <-h.exited:
		info.Ended, info.Exit = true, h.exit
	default:
		info.Ready = h.started && !h.ending && m.alive()
	}
	return info, nil
}

// WaitPod waits until the VM of the pod is gone.
func (s *Sandbox) WaitPod(ctx context.Context, id string) (Exit, error) {
	h, _, err := s.findPod(id)
	if err != nil {
		return Exit{}, err
	}
	select {
	case <-h.exited:
		return h.exit, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for pod %s: %w", id, ctx.Err())
	}
}

// StopPod ends the VM of the pod, whatever runs in it, and waits until it is
// gone. Its containers have stopped then and can be deleted. It may be called
// more than once.
func (s *Sandbox) StopPod(ctx context.Context, id string) error {
	h, m, err := s.findPod(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	h.ending = true
	var creating []*container
	for _, c := range s.containers {
		creating = append(creating, c)
	}
	s.mu.Unlock()
	for _, c := range creating {
		c.abandon() // counts for those that are being created alone
	}
	if err := m.stop(ctx); err != nil {
		return fmt.Errorf("stop pod %s: %w", id, err)
	}
	s.podEnded(h, 0)
	return nil
}

// RemovePod stops the pod and forgets it.
func (s *Sandbox) RemovePod(ctx context.Context, id string) error {
	if err := s.StopPod(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pod, s.machine = nil, nil
	return nil
}

// podEnded notes the end of the pod's VM, once.
func (s *Sandbox) podEnded(h *held, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-h.exited:
	default:
		h.exit = Exit{Status: status, At: time.Now()}
		close(h.exited)
	}
}
