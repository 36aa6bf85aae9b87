package sandbox

import (
	"context"
	"io"
	"os"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/rootfs"
)

// earlyDisks are those of the first container that is created while a VM starts. The VM
// gets them before it is ready, if they are planned by then: while its guest boots, or before
// a guest that goes on from a template runs. That one needs about as long to look for one device
// as for all of them.
//
// The goroutine of the container's creation offers and collects, that of the machine
// plugs in and loses.
type earlyDisks struct {
	// turn is held by who reads or changes the rest, and while disks are plugged in.
	turn   chan struct{}
	of     *container                                   // that offers, or did
	attach func(context.Context) ([]*pb.Storage, error) // nil while nobody offers
	done   bool                                         // attach was called, and gave:
	given  []*pb.Storage
	err    error

	offered chan struct{} // closed when something is
}

func newEarlyDisks() earlyDisks {
	return earlyDisks{turn: make(chan struct{}, 1), offered: make(chan struct{})}
}

// offer has attach called before the VM is ready, if it is not too late for that and
// nobody else has offered. The caller must collect, whatever happens.
func (e *earlyDisks) offer(of *container, attach func(context.Context) ([]*pb.Storage, error)) {
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	if e.of == nil {
		e.of, e.attach = of, attach
		close(e.offered)
	}
}

// plug attaches what is offered. How that ended is for the container to say: the VM
// lives on without its disks.
func (e *earlyDisks) plug(ctx context.Context) {
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	if e.attach == nil {
		return
	}
	e.given, e.err = e.attach(ctx)
	e.done = true
}

// lost says that the VM with the disks has ended, and another one is to get them.
func (e *earlyDisks) lost() {
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	e.done, e.given, e.err = false, nil, nil
}

// collect withdraws an offer, once a plug under way is over, and says what came of
// it: nothing if done is false.
func (e *earlyDisks) collect(of *container) (given []*pb.Storage, done bool, err error) {
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	if e.of != of {
		return nil, false, nil
	}
	e.attach = nil
	return e.given, e.done, e.err
}

// offer lets the disks of a container be plugged in before the VM is ready, for as long
// as ctx lives.
func (m *machine) offer(ctx context.Context, c *container, plan *rootfs.Plan) {
	m.early.offer(c, func(starting context.Context) ([]*pb.Storage, error) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		stop := context.AfterFunc(starting, func() { cancel(context.Cause(starting)) })
		defer stop()
		return m.attach(ctx, c, plan)
	})
}

// plugEarly plugs in what is offered while a guest boots.
func (m *machine) plugEarly(ctx context.Context) {
	select {
	case <-m.early.offered:
		m.early.plug(ctx)
	case <-m.ready:
	case <-ctx.Done():
	}
}

// findsEarlyDisks says whether the agent in an initramfs finds a disk that was there
// before it: ours does, while Kata's knows only those whose uevents it has heard. An
// initramfs of ours begins with a member that says so (guest/layout.Mark).
func findsEarlyDisks(initrd string) bool {
	const header = 110 // bytes of a newc header: the magic and 13 numbers (cpio(5))
	want := earlyMark + "\x00"
	f, err := os.Open(initrd)
	if err != nil {
		return false // QEMU will say so
	}
	defer f.Close()
	head := make([]byte, header+len(want))
	if _, err := io.ReadFull(f, head); err != nil {
		return false
	}
	return string(head[:6]) == "070701" && string(head[header:]) == want
}

// earlyMark is the name of that member, guest/layout.Mark.
const earlyMark = ".erofsvm-guest"
