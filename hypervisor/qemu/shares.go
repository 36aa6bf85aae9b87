package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/virtiofs"
)

// ErrNoShares is wrapped by an AttachShare to a VM that was started without a
// Spec.Virtiofsd.
var ErrNoShares = errors.New("the virtual machine was not made for shares")

// share is the host's end of a share.
type share struct {
	daemon *virtiofs.Daemon
	ending chan struct{} // closed before the daemon is to end
	// lent and chardev say what QEMU may have: the connection under a name, and a
	// character device made of it. Guarded by the turn of the disk.
	lent, chardev bool
}

func (d *disk) chardevName() string { return "share-" + d.id }

// AttachShare implements hypervisor.VM. Each share has a virtiofsd of its own.
func (m *Machine) AttachShare(ctx context.Context, want hypervisor.Share) error {
	if err := m.attachShare(ctx, want); err != nil {
		return fmt.Errorf("attach share %q: %w", want.ID, gone(err))
	}
	return nil
}

func (m *Machine) attachShare(ctx context.Context, want hypervisor.Share) error {
	switch {
	case m.spec.Virtiofsd == "":
		return fmt.Errorf("%w: mounts.bind was not \"virtiofs\" when it was started", ErrNoShares)
	case !isDiskID(want.ID):
		return errDiskID
	}
	d, err := m.reserve(want.ID, VirtioBlk)
	if err != nil {
		return err
	}
	defer m.settle(ctx, d)

	err = m.serve(ctx, d, want)
	if err == nil {
		err = m.rest(ctx, &d.plug)
	}
	if err == nil {
		err = m.plugShare(ctx, d)
	}
	if err != nil {
		return m.rollBack(ctx, d, err)
	}
	return nil
}

// serve starts the daemon, one at a time, and has it recorded before anybody
// depends on it. The caller holds the turn of d.
func (m *Machine) serve(ctx context.Context, d *disk, want hypervisor.Share) error {
	select {
	case m.serving <- struct{}{}:
		defer func() { <-m.serving }()
	case <-m.proc.child.Done():
		return hypervisor.ErrGone
	case <-ctx.Done():
		return fmt.Errorf("wait until another share is served: %w", context.Cause(ctx))
	}
	cfg := virtiofs.Config{Binary: m.spec.Virtiofsd, Dir: m.spec.Dir, Hide: want.Hide}
	for _, e := range want.Entries {
		cfg.Entries = append(cfg.Entries, virtiofs.Entry(e))
	}
	daemon, err := virtiofs.Start(cfg)
	if err != nil {
		return fmt.Errorf("mounts.virtiofsd: %w", err)
	}
	d.share = &share{daemon: daemon, ending: make(chan struct{})}
	if err := m.keepShare(d); err != nil {
		return err
	}
	if m.spec.OnStarted != nil {
		if err := m.spec.OnStarted(m.Record()); err != nil {
			return fmt.Errorf("record the virtual machine's processes: %w", err)
		}
	}
	return nil
}

// keepShare adds a share to those that end with the VM, and the other way round.
func (m *Machine) keepShare(d *disk) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return hypervisor.ErrGone // and the roll-back ends the daemon
	}
	m.shares[d.id] = d.share
	s := d.share
	m.tasks.Go(func() { m.watchShare(d.id, s) })
	return nil
}

// watchShare ends the VM if a daemon ends before its share is detached: the guest's
// kernel waits for answers without end. A daemon ends with QEMU too, which then
// is the reason, and can be seen to end later.
func (m *Machine) watchShare(id string, s *share) {
	select {
	case <-s.ending:
		return
	case <-m.proc.child.Done():
		return
	case <-s.daemon.Done():
	}
	timer := time.NewTimer(dyingTime)
	defer timer.Stop()
	select {
	case <-s.ending:
	case <-m.proc.child.Done():
	case <-timer.C:
		select {
		case m.failed <- fmt.Errorf("share %q: %w", id, s.daemon.Err()):
		default: // there is a reason already
		}
	}
}

// plugShare hands the connection to the daemon over and makes the device. What
// times out may have happened, so it counts as done to the roll-back.
//
// QEMU talks to the daemon while it makes the device, and does nothing else.
func (m *Machine) plugShare(ctx context.Context, d *disk) error {
	if err := m.roomFor(2); err != nil { // the connection, and that of the back-end
		return err
	}
	name := d.chardevName()
	err := m.proc.monitor.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": name}, nil, d.share.daemon.Conn())
	d.share.lent = !refused(err)
	d.share.daemon.Release()
	if err == nil {
		err = m.proc.monitor.Execute(ctx, "chardev-add", shareChardev(name), nil)
		d.share.chardev = !refused(err)
	}
	if err == nil {
		err = m.proc.monitor.Execute(ctx, "device_add", shareDevice(d), nil)
		d.there, d.plugged = !refused(err), err == nil
	}
	if err != nil {
		return fmt.Errorf("%w%s", err, d.share.daemon.Says())
	}
	return nil
}

// shareChardev is the argument of chardev-add (qapi/char.json) for a descriptor
// that QEMU knows by the name.
func shareChardev(name string) map[string]any {
	return map[string]any{"id": name, "backend": map[string]any{
		"type": "socket", "data": map[string]any{
			"addr":   map[string]any{"type": "fd", "data": map[string]any{"str": name}},
			"server": false,
		},
	}}
}

// shareDevice is the argument of device_add.
func shareDevice(d *disk) map[string]any {
	options := map[string]any{
		"driver": "vhost-user-fs-pci", "id": d.name, "chardev": d.chardevName(), "tag": d.id,
		"bus": d.slot.bus(), "addr": d.slot.addr(),
	}
	if !d.vectors {
		options["vectors"] = 0
	}
	return options
}

// endShare takes from QEMU what it has of a share beside the device, and ends the
// daemon. The caller holds the turn of d. Ending what has ended is no error.
func (m *Machine) endShare(ctx context.Context, d *disk) error {
	s := d.share
	if s == nil {
		return nil
	}
	select {
	case <-s.ending:
	default:
		close(s.ending)
	}
	if s.chardev {
		err := m.proc.monitor.Execute(ctx, "chardev-remove", map[string]any{"id": d.chardevName()}, nil)
		if err != nil {
			has, queryErr := m.hasChardev(ctx, d.chardevName())
			if queryErr != nil || has {
				return errors.Join(err, queryErr)
			}
		}
		s.chardev = false
	}
	if s.lent {
		// Refused where the character device has taken it.
		err := m.proc.monitor.Execute(ctx, "closefd", map[string]any{"fdname": d.chardevName()}, nil)
		if err != nil && !refused(err) {
			return fmt.Errorf("take back the connection to virtiofsd: %w", err)
		}
		s.lent = false
	}
	if err := s.daemon.Close(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.shares, d.id)
	d.share = nil
	return nil
}

// hasChardev says whether QEMU has a character device of this name.
func (m *Machine) hasChardev(ctx context.Context, name string) (bool, error) {
	var all []struct {
		Label string `json:"label"`
	}
	if err := m.proc.monitor.Execute(ctx, "query-chardev", nil, &all); err != nil {
		return false, err
	}
	for _, c := range all {
		if c.Label == name {
			return true, nil
		}
	}
	return false, nil
}

// closeShares ends the daemons of a VM that has ended. No more are kept by then.
func (m *Machine) closeShares(ctx context.Context) []error {
	m.mu.Lock()
	all := make([]*share, 0, len(m.shares))
	for id, s := range m.shares {
		all = append(all, s)
		delete(m.shares, id)
	}
	m.mu.Unlock()
	var errs []error
	for _, s := range all {
		errs = append(errs, s.daemon.Close(ctx))
	}
	return errs
}
