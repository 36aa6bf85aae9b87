package server

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
)

// volume is a filesystem that the containers of the pod share. Whoever has the turn
// may mount or unmount it.
type volume struct {
	storage.Shared
	turn    chan struct{}
	mounted bool
}

// parseShared reads storages that belong to the pod: each has a name of its own
// below the sandbox's directory.
func (s *Sandbox) parseShared(storages []*pb.Storage) ([]storage.Shared, error) {
	var all []storage.Shared
	for _, one := range storages {
		shared, err := storage.ParseShared(filepath.Join(s.Base, "sandbox"), one)
		if err != nil {
			return nil, err
		}
		all = append(all, shared)
	}
	return all, nil
}

// ownAndShared separates the storages of a container's root filesystem from those of
// the pod.
func ownAndShared(storages []*pb.Storage) (own, shared []*pb.Storage) {
	for _, s := range storages {
		if s.GetShared() {
			shared = append(shared, s)
		} else {
			own = append(own, s)
		}
	}
	return own, shared
}

// mount mounts those that are not there yet, and makes the directories that are
// asked for in each. They stay until the sandbox is destroyed, whatever becomes of
// the container that came with them: the next one may find its files there.
func (s *Sandbox) mount(ctx context.Context, all []storage.Shared) error {
	for _, one := range all {
		if err := s.mountOne(ctx, one); err != nil {
			return fmt.Errorf("storage of the sandbox at %s: %w", one.Target, err)
		}
	}
	return nil
}

func (s *Sandbox) mountOne(ctx context.Context, shared storage.Shared) error {
	v := s.volume(shared.Target)
	if err := v.take(ctx); err != nil {
		return err
	}
	defer v.giveBack()
	switch {
	case !v.mounted: // what failed before binds nobody
		v.Shared = shared
	case !v.Same(shared):
		return fmt.Errorf("another one is there: %w", errdefs.ErrAlreadyExists)
	}
	if !v.mounted {
		if err := shared.Mount(ctx, s.System); err != nil {
			return err
		}
		v.mounted = true
	}
	return shared.MakeDirs()
}

// volume is what is, or is to be, mounted at a place.
func (s *Sandbox) volume(target string) *volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.volumes[target]
	if v == nil {
		v = &volume{turn: make(chan struct{}, 1)}
		if s.volumes == nil {
			s.volumes = map[string]*volume{}
		}
		s.volumes[target] = v
	}
	return v
}

func (v *volume) take(ctx context.Context) error {
	select {
	case v.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another call about it: %w", ctx.Err())
	}
}

func (v *volume) giveBack() { <-v.turn }

// unmount takes all of them away. What fails stays, for a further call.
func (s *Sandbox) unmount(ctx context.Context) error {
	s.mu.Lock()
	all := s.volumes
	s.volumes = nil
	s.mu.Unlock()
	var errs []error
	for target, v := range all {
		if err := v.unmount(ctx); err != nil {
			errs = append(errs, err)
			s.keep(target, v)
		}
	}
	return errors.Join(errs...)
}

func (s *Sandbox) keep(target string, v *volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.volumes == nil {
		s.volumes = map[string]*volume{}
	}
	s.volumes[target] = v
}

func (v *volume) unmount(ctx context.Context) error {
	if err := v.take(ctx); err != nil {
		return err
	}
	defer v.giveBack()
	if !v.mounted {
		return nil
	}
	if err := v.Unmount(); err != nil {
		return err
	}
	v.mounted = false
	return nil
}
