package qmp_test

import (
	"context"
	"strings"
	"testing"
)

func TestSubscriptionGetsItsEventsInOrder(t *testing.T) {
	m, p := connected(t)
	all, some := m.Subscribe(), m.Subscribe("DEVICE_DELETED")
	defer all.Close()
	defer some.Close()
	p.event("RESET", `{}`)
	p.event("DEVICE_DELETED", `{"device": "d"}`)
	if e := <-all.Events(); e.Event != "RESET" || e.Timestamp.Seconds != 1 {
		t.Errorf("first event is %+v", e)
	}
	if e := <-some.Events(); e.Data["device"] != "d" {
		t.Errorf("event is %+v", e)
	}
}

func TestBurstOfEventsHoldsNothingUp(t *testing.T) {
	m, p := connected(t)
	slow, fast := m.Subscribe(), m.Subscribe("LAST")
	defer slow.Close()
	defer fast.Close()
	const burst = 10_000
	go func() {
		c := p.receive()
		p.say(strings.Repeat(`{"event": "NOISE", "data": {}}`+"\n", burst))
		p.event("LAST", `{}`)
		p.answer(c, `"intact"`)
	}()
	var got string
	if err := m.Execute(within(t), "x", nil, &got); err != nil || got != "intact" {
		t.Errorf("got %q, %v", got, err)
	}
	if e := <-fast.Events(); e.Event != "LAST" {
		t.Errorf("event is %+v", e)
	}
	kept := uint64(len(slow.Events()))
	if kept == 0 || kept+slow.Dropped() != burst+1 {
		t.Errorf("%d events kept and %d dropped of %d", kept, slow.Dropped(), burst+1)
	}
	var last string
	for range kept {
		last = (<-slow.Events()).Event
	}
	if last != "LAST" {
		t.Errorf("the newest event was dropped: the last one is %s", last)
	}
}

func TestEventsEndWithTheirContext(t *testing.T) {
	m, p := connected(t)
	ctx, cancel := context.WithCancel(t.Context())
	events, err := m.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p.event("RESET", `{}`)
	if e := <-events; e.Event != "RESET" {
		t.Errorf("event is %+v", e)
	}
	cancel()
	if e, open := <-events; open {
		t.Errorf("still open: %+v", e)
	}
}

func TestClosingASubscriptionTwice(t *testing.T) {
	m, p := connected(t)
	s := m.Subscribe()
	s.Close()
	s.Close()
	go func() {
		for range 3 {
			p.event("RESET", `{}`)
		}
		p.answer(p.receive(), `{}`)
	}()
	if err := m.Execute(within(t), "x", nil, nil); err != nil {
		t.Error(err)
	}
	if _, open := <-s.Events(); open {
		t.Error("an event after Close")
	}
}
