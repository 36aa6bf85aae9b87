package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor/qmp"
)

func TestHandshakeReadsTheVersionAndNegotiates(t *testing.T) {
	m, p := newPeer(t)
	result := make(chan error, 1)
	go func() { result <- m.Connect() }()
	p.say(greeting)
	c := p.receive()
	if c.Execute != "qmp_capabilities" {
		t.Errorf("first command is %q", c.Execute)
	}
	p.answer(c, `{}`)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if v := m.Version().String(); v != "10.0.2" {
		t.Errorf("version is %s", v)
	}
}

func TestHandshakeFails(t *testing.T) {
	for name, tc := range map[string]struct {
		peer func(*peer)
		want error
	}{
		"a peer that speaks something else": {func(p *peer) { p.say("SSH-2.0-OpenSSH\r\n") }, qmp.ErrProtocol},
		"a greeting without QMP":            {func(p *peer) { p.say("{}\r\n") }, qmp.ErrProtocol},
		"a peer that closes":                {func(p *peer) { p.conn.Close() }, nil},
		"a peer that closes inside a line":  {func(p *peer) { p.say(`{"QMP"`); p.conn.Close() }, nil},
		"a peer that says nothing":          {func(*peer) {}, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			m, p := newPeer(t)
			tc.peer(p)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			err := m.Handshake(ctx)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
			if err := m.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, qmp.ErrClosed) {
				t.Errorf("a command afterwards: %v, want ErrClosed", err)
			}
		})
	}
}

func TestCommandBeforeHandshakeIsRefused(t *testing.T) {
	m, _ := newPeer(t)
	if err := m.Execute(t.Context(), "query-status", nil, nil); err == nil {
		t.Error("no error")
	}
}

func TestExecuteDecodesTheAnswer(t *testing.T) {
	m, p := connected(t)
	go func() {
		c := p.receive()
		if c.Arguments["device"] != "d" {
			t.Errorf("arguments are %v", c.Arguments)
		}
		p.answer(c, `{"status": "running"}`)
	}()
	var status struct{ Status string }
	if err := m.Execute(within(t), "query-status", map[string]string{"device": "d"}, &status); err != nil {
		t.Fatal(err)
	}
	if status.Status != "running" {
		t.Errorf("status is %q", status.Status)
	}
}

func TestErrorKeepsItsClass(t *testing.T) {
	m, p := connected(t)
	go func() {
		p.say(fmt.Sprintf(`{"id": %q, "error": {"class": "DeviceNotFound", "desc": "Device 'd' not found"}}`+"\r\n", p.receive().ID))
	}()
	err := m.Execute(within(t), "device_del", nil, nil)
	var answer *qmp.Error
	if !errors.As(err, &answer) || answer.Class != qmp.ClassDeviceNotFound || answer.Command != "device_del" {
		t.Errorf("error is %#v", err)
	}
	if !qmp.IsClass(fmt.Errorf("wrapped: %w", err), qmp.ClassDeviceNotFound) || qmp.IsClass(err, qmp.ClassGeneric) {
		t.Errorf("class of %v", err)
	}
}

func TestAnswersFindTheirCommandsInAnyOrder(t *testing.T) {
	m, p := connected(t)
	const n = 200
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			var got int
			if err := m.Execute(within(t), "echo", map[string]int{"n": i}, &got); err != nil {
				t.Error(err)
			} else if got != i {
				t.Errorf("command %d got the answer of %d", i, got)
			}
		})
	}
	var held []command
	for range n {
		held = append(held, p.receive())
	}
	for i := range held {
		c := held[len(held)-1-i]
		p.answer(c, fmt.Sprint(c.Arguments["n"]))
	}
	calls.Wait()
}

func TestAnswerOfAnyLength(t *testing.T) {
	m, p := connected(t)
	long := strings.Repeat("x", 1<<20)
	go func() { p.answer(p.receive(), `"`+long+`"`) }()
	var got string
	if err := m.Execute(within(t), "query-qmp-schema", nil, &got); err != nil {
		t.Fatal(err)
	}
	if got != long {
		t.Errorf("got %d bytes that differ from the %d sent", len(got), len(long))
	}
}

func TestAnswerInPieces(t *testing.T) {
	m, p := connected(t)
	go func() {
		answer := fmt.Sprintf(`{"return": "whole", "id": %q}`+"\r\n", p.receive().ID)
		for _, b := range []byte(answer) {
			p.say(string(b))
		}
	}()
	var got string
	if err := m.Execute(within(t), "x", nil, &got); err != nil || got != "whole" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDeadlineEndsACallAndItsLateAnswerIsDropped(t *testing.T) {
	m, p := connected(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error is %v", err)
	}
	slow := p.receive()
	go func() {
		next := p.receive()
		p.answer(slow, `"late"`)
		p.say(`{"return": "to nobody", "id": "no such id"}` + "\r\n")
		p.say(`{"return": "without an id"}` + "\r\n")
		p.answer(next, `"in time"`)
	}()
	var got string
	if err := m.Execute(within(t), "next", nil, &got); err != nil || got != "in time" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A peer that reads nothing fills the socket's buffer; a call must end all the
// same, and so must those that wait for their turn to send.
func TestDeadlineEndsASendThatIsStuck(t *testing.T) {
	m, _ := connected(t)
	big := strings.Repeat("x", 1<<20)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			if err := m.Execute(ctx, "big", map[string]string{"data": big}, nil); err == nil {
				t.Error("no error")
			}
		})
	}
	calls.Wait()
	select {
	case <-m.Done(): // half a command was sent
	case <-time.After(patience):
		t.Error("the connection is still in use after half a command")
	}
}

func TestEndOfConnectionFailsEveryPendingCall(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(*qmp.Monitor, *peer)
		want error
	}{
		"QEMU closes":              {func(_ *qmp.Monitor, p *peer) { p.conn.Close() }, qmp.ErrClosed},
		"QEMU closes inside reply": {func(_ *qmp.Monitor, p *peer) { p.say(`{"return": `); p.conn.Close() }, qmp.ErrClosed},
		"we disconnect":            {func(m *qmp.Monitor, _ *peer) { m.Disconnect() }, qmp.ErrClosed},
		"QEMU sends garbage":       {func(_ *qmp.Monitor, p *peer) { p.say("garbage\n") }, qmp.ErrProtocol},
		"QEMU sends a wrong type":  {func(_ *qmp.Monitor, p *peer) { p.say(`{"event": 5}` + "\n") }, qmp.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			m, p := connected(t)
			events := m.Subscribe()
			results := make(chan error, 3)
			for range cap(results) {
				go func() { results <- m.Execute(within(t), "wait", nil, nil) }()
				p.receive()
			}
			tc.end(m, p)
			for range cap(results) {
				if err := <-results; !errors.Is(err, qmp.ErrClosed) || !errors.Is(err, tc.want) {
					t.Errorf("error is %v, want ErrClosed and %v", err, tc.want)
				}
			}
			if _, open := <-events.Events(); open {
				t.Error("the subscription is still open")
			}
			if _, open := <-m.Subscribe().Events(); open {
				t.Error("a new subscription is open")
			}
			if err := m.Execute(within(t), "later", nil, nil); !errors.Is(err, qmp.ErrClosed) {
				t.Errorf("a later call: %v", err)
			}
		})
	}
}

func TestRunGivesTheRawAnswer(t *testing.T) {
	m, p := connected(t)
	go func() {
		c := p.receive()
		if c.Execute != "query-status" || c.Arguments["a"] != float64(1) || c.ID == "mine" {
			t.Errorf("received %+v", c)
		}
		p.answer(c, `{"running": true}`)
	}()
	out, err := m.Run([]byte(`{"execute": "query-status", "arguments": {"a": 1}, "id": "mine"}`))
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Return struct{ Running bool } }
	if err := json.Unmarshal(out, &answer); err != nil || !answer.Return.Running {
		t.Errorf("%s: %v", out, err)
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"execute": 5}`} {
		if _, err := m.Run([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestDisconnectBeforeHandshakeAndTwice(t *testing.T) {
	m, _ := newPeer(t)
	for range 2 {
		if err := m.Disconnect(); err != nil {
			t.Error(err)
		}
	}
	if err := m.Handshake(t.Context()); err == nil {
		t.Error("a handshake after Disconnect succeeds")
	}
}
