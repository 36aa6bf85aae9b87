package template

import (
	"context"
	"path/filepath"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
)

// Lend borrows the template of a VM, and returns the VM's Spec with it: qemu.Start goes
// on from the template then. The spec is also returned, without it, with an error that
// wraps ErrNone: then Make can build it.
func (s Store) Lend(ctx context.Context, spec qemu.Spec) (*Loan, qemu.Spec, error) {
	d, spec, err := qemu.Describe(ctx, spec)
	if err != nil {
		return nil, spec, err
	}
	key, err := KeyOf(d)
	if err != nil {
		return nil, spec, err
	}
	loan, err := s.Borrow(key)
	if err != nil {
		return nil, spec, err
	}
	spec.From = loan.Saved
	return loan, spec, nil
}

// Make builds the template of a VM, unless it is there.
func (s Store) Make(ctx context.Context, spec qemu.Spec) (Key, error) {
	spec.Dir = filepath.Join(s.Dir, vmDir) // which it has to have, and says nothing about it
	d, spec, err := qemu.Describe(ctx, spec)
	if err != nil {
		return "", err
	}
	key, err := KeyOf(d)
	if err != nil {
		return "", err
	}
	return key, s.Build(ctx, d, func(ctx context.Context, dir string, to qemu.Saved) error {
		spec.Dir, spec.AIO = dir, qemu.AIOThreads
		return qemu.Save(ctx, spec, to)
	})
}
