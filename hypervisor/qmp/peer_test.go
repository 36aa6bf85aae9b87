package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor/qmp"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "peer"}, "capabilities": ["oob"]}}` + "\r\n"

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// peer is the other end of a monitor's connection. It says what a test's script
// tells it to, which the real QEMU cannot be made to do.
type peer struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Reader
}

// command is what a peer receives.
type command struct {
	Execute   string         `json:"execute"`
	Arguments map[string]any `json:"arguments"`
	ID        string         `json:"id"`
}

// newPeer returns a monitor before its handshake, and its peer.
func newPeer(t *testing.T) (*qmp.Monitor, *peer) {
	t.Helper()
	ours, theirs := unixPair(t)
	m := qmp.New(ours)
	t.Cleanup(func() { m.Disconnect(); theirs.Close() })
	return m, &peer{t: t, conn: theirs, lines: bufio.NewReader(theirs)}
}

// connected returns a monitor after its handshake, and its peer.
func connected(t *testing.T) (*qmp.Monitor, *peer) {
	t.Helper()
	m, p := newPeer(t)
	result := make(chan error, 1)
	go func() { result <- m.Handshake(within(t)) }()
	p.say(greeting)
	p.answer(p.receive(), `{}`)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	return m, p
}

// unixPair is a connected pair of Unix sockets, as between the shim and QEMU.
func unixPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (p *peer) say(text string) {
	p.t.Helper()
	if err := p.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		p.t.Error(err)
	}
	if _, err := p.conn.Write([]byte(text)); err != nil {
		p.t.Error(err)
	}
}

func (p *peer) receive() command {
	p.t.Helper()
	if err := p.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Error(err)
	}
	line, err := p.lines.ReadBytes('\n')
	if err != nil {
		p.t.Error(err)
		return command{}
	}
	var c command
	if err := json.Unmarshal(line, &c); err != nil {
		p.t.Errorf("%s: %v", line, err)
	}
	return c
}

func (p *peer) answer(c command, result string) {
	p.t.Helper()
	p.say(fmt.Sprintf(`{"return": %s, "id": %q}`+"\r\n", result, c.ID))
}

func (p *peer) event(name, data string) {
	p.t.Helper()
	p.say(fmt.Sprintf(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": %q, "data": %s}`+"\r\n", name, data))
}
