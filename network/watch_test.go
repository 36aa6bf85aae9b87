package network

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

func TestChangesAreToldOnceTheyHaveSettled(t *testing.T) {
	p := newPod(t)
	p.plug(t, "eth0", mac(1), 1500, "10.1.0.5/24")
	n := p.open(t)
	changes, err := n.Watch()
	must(t, "watch", err)
	defer changes.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 2 {
		told := make(chan error, 1)
		go func() { told <- changes.Next(ctx) }()
		p.plug(t, "net1", mac(2), 1500, "10.2.0.5/24", "fd00:2::5/64")
		must(t, "next", <-told)
		found, err := n.Scan()
		must(t, "scan", err)
		if len(found.Interfaces) != 2 || len(found.Interfaces[1].Addresses) != 2 {
			t.Errorf("told of half a change: %+v", found.Interfaces)
		}
		go func() { told <- changes.Next(ctx) }()
		must(t, "unplug", p.LinkDel(p.link(t, "net1")))
		must(t, "unplug the bridge", p.outside.LinkDel(p.outside.link(t, "br-net1")))
		must(t, "next", <-told)
	}
}

func TestWaitForAChangeEndsWithItsContextOrItsSocket(t *testing.T) {
	p := newPod(t)
	n := p.open(t)
	changes, err := n.Watch()
	must(t, "watch", err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := changes.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the context: %v", err)
	}
	must(t, "close", changes.Close())
	if err := changes.Next(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
