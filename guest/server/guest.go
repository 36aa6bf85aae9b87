package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/container"
	"github.com/erofsvm/erofsvm/guest/token"
)

// guest is the service that only this agent has.
type guest struct {
	containers *container.Manager
	root       string // of the guest's filesystem
}

const (
	// minSeed is what the kernel's pool holds (drivers/char/random.c, POOL_BITS):
	// less would leave something to guess.
	minSeed    = 32
	sampleSize = 16
)

// isMachineID says that s is one of machine-id(5).
func isMachineID(s string) bool { return token.Of(s, 32, 32, token.Hex) }

// Personalise makes the guest one of its own. Randomness comes first, so that
// nothing of the rest is done with numbers that another guest has as well: the
// agent itself draws its numbers from the kernel at the moment it needs them, and
// needs none before (docs/security-templates.md).
func (g *guest) Personalise(_ context.Context, r *pb.PersonaliseRequest) (*pb.PersonaliseResponse, error) {
	switch {
	case len(r.GetEntropy()) < minSeed || len(r.GetEntropy()) > maxSeed:
		return nil, fmt.Errorf("a seed of %d bytes, want %d to %d: %w", len(r.GetEntropy()), minSeed, maxSeed, errdefs.ErrInvalidArgument)
	case r.GetUnixNanos() < 0:
		return nil, fmt.Errorf("time %d: %w", r.GetUnixNanos(), errdefs.ErrInvalidArgument)
	case r.GetHostname() != "" && !isHostname(r.GetHostname()):
		return nil, fmt.Errorf("hostname %.80q: %w", r.GetHostname(), errdefs.ErrInvalidArgument)
	case r.GetMachineId() != "" && !isMachineID(r.GetMachineId()):
		return nil, fmt.Errorf("machine id %.80q: %w", r.GetMachineId(), errdefs.ErrInvalidArgument)
	}
	if n := g.containers.Len(); n > 0 {
		return nil, fmt.Errorf("%d containers are here already: %w", n, errdefs.ErrFailedPrecondition)
	}
	if err := reseed(r.GetEntropy()); err != nil {
		return nil, err
	}
	if r.GetUnixNanos() > 0 {
		now := unix.NsecToTimeval(r.GetUnixNanos())
		if err := unix.Settimeofday(&now); err != nil {
			return nil, fmt.Errorf("set the clock: %w", err)
		}
	}
	if r.GetHostname() != "" {
		if err := unix.Sethostname([]byte(r.GetHostname())); err != nil {
			return nil, fmt.Errorf("set hostname %s: %w", r.GetHostname(), err)
		}
	}
	if r.GetMachineId() != "" {
		if err := g.writeMachineID(r.GetMachineId()); err != nil {
			return nil, err
		}
	}
	sample := make([]byte, sampleSize)
	rand.Read(sample)
	return &pb.PersonaliseResponse{Sample: sample}, nil
}

// writeMachineID writes that of the guest itself; a container has that of its image.
func (g *guest) writeMachineID(id string) error {
	etc := filepath.Join(g.root, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return fmt.Errorf("machine id: %w", err)
	}
	path := filepath.Join(etc, "machine-id")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("machine id: %w", err)
	}
	if err := os.WriteFile(path, []byte(id+"\n"), 0o444); err != nil {
		return fmt.Errorf("machine id: %w", err)
	}
	return nil
}
