package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/erofsvm/erofsvm/hypervisor/internal/child"
	"github.com/erofsvm/erofsvm/hypervisor/virtiofs"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// makeDir makes the VM's private directory, or takes an empty one.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		entries, readErr := os.ReadDir(dir)
		if readErr != nil {
			return fmt.Errorf("state directory: %w", readErr)
		}
		if len(entries) > 0 {
			return fmt.Errorf("state directory %s is not empty (%s): another virtual machine uses it, or Cleanup has not run",
				dir, entries[0].Name())
		}
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// removeDir removes the VM's directory. Only names of ours are removed from it, so
// that a wrong path costs nobody a tree.
func removeDir(dir string) error {
	err := errors.Join(vsock.RemoveSockets(dir), virtiofs.RemoveSocket(dir), removeFile(dir, probeFile))
	if rm := os.Remove(dir); rm != nil && !errors.Is(rm, os.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}

// Record names what a VM consists of on the host. It is kept as JSON.
type Record struct {
	QEMU        child.Identity `json:"qemu"`
	VsockDaemon child.Identity `json:"vsock_daemon"` // zero if the kernel is the device
	// Shares are the daemons of shares that are attached, or are about to be.
	Shares []child.Identity `json:"shares,omitempty"`
	Dir    string           `json:"dir"`
}

// Cleanup ends a VM whose owner has died, from what it recorded, and removes what
// is left of it. A pid that now belongs to another process is left alone. It
// may be called more than once, and at the same time.
func Cleanup(ctx context.Context, r Record) error {
	if err := cleanPath(r.Dir); err != nil {
		return fmt.Errorf("clean up virtual machine: directory: %w", err)
	}
	err := errors.Join(r.QEMU.Kill(ctx), r.VsockDaemon.Kill(ctx))
	for _, daemon := range r.Shares {
		err = errors.Join(err, daemon.Kill(ctx))
	}
	if err == nil { // else the directory stays, as a trace of what still runs
		err = removeDir(r.Dir)
	}
	if err != nil {
		return fmt.Errorf("clean up virtual machine: %w", err)
	}
	return nil
}
