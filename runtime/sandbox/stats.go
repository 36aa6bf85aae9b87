package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/runtime/metrics"
)

// Stats returns what a container has used so far. One that has stopped still
// answers; when its VM is gone, with the last that was asked for, or with
// nothing. The message is not to be changed.
func (s *Sandbox) Stats(ctx context.Context, id string) (*pb.StatsContainerResponse, error) {
	p, m, err := s.findCreated(id, "")
	if err != nil {
		return nil, err
	}
	stats, err := p.c.runner(m).StatsContainer(ctx, id)
	state, _ := p.current()
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	switch {
	case err == nil:
		p.c.stats = stats
	case state != Stopped:
		return nil, fmt.Errorf("statistics of %s: %w", p, err)
	case p.c.stats == nil:
		p.c.stats = &pb.StatsContainerResponse{}
	}
	return p.c.stats, nil
}

// PodStats returns what the containers of the sandbox that run in the guest use
// together. Processor time is that of those, too, that are gone.
func (s *Sandbox) PodStats(ctx context.Context) (*pb.StatsContainerResponse, error) {
	s.mu.Lock()
	var ids []string
	for id, c := range s.containers {
		if c.virtual == nil {
			ids = append(ids, id)
		}
	}
	all := []*pb.StatsContainerResponse{s.spent}
	s.mu.Unlock()
	for _, id := range ids {
		stats, err := s.Stats(ctx, id)
		if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
			continue // it comes or goes
		}
		if err != nil {
			return nil, err
		}
		all = append(all, stats)
	}
	return metrics.Sum(all), nil
}

// Update changes the limits of a container in the guest, which grows first if
// they ask for it. After an error they are as they were.
func (s *Sandbox) Update(ctx context.Context, id string, resources *pb.LinuxResources) error {
	p, m, err := s.findCreated(id, "")
	if err != nil {
		return err
	}
	if state, _ := p.current(); state == Stopped || state == Deleted {
		return fmt.Errorf("update %s: it is %s, not %s: %w", p, state, Running, errdefs.ErrFailedPrecondition)
	}
	if p.c.virtual != nil {
		return nil // it uses nothing
	}
	undo := p.c.changeLimits(resources)
	if err = s.grow(ctx, m); err == nil {
		err = m.agent.UpdateContainer(ctx, id, resources)
	}
	if err != nil {
		undo()
		return fmt.Errorf("update %s: %w", p, err)
	}
	return nil
}
