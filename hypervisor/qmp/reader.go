package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// read hands every line to whom it belongs until the connection ends.
func (m *Monitor) read(lines *bufio.Reader) {
	for {
		line, err := readLine(lines)
		if err == nil {
			err = m.dispatch(line)
		}
		if err != nil {
			m.end(err)
			return
		}
	}
}

// dispatch takes one line. Its error means that the peer does not speak QMP.
func (m *Monitor) dispatch(line []byte) error {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return nil
	}
	var kind struct {
		Event string `json:"event"`
	}
	if err := json.Unmarshal(line, &kind); err != nil {
		return fmt.Errorf("%w: %.200q: %w", ErrProtocol, line, err)
	}
	if kind.Event != "" {
		var e goqemu.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("%w: event %.200q: %w", ErrProtocol, line, err)
		}
		m.publish(e)
		return nil
	}
	r := reply{line: line}
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("%w: answer %.200q: %w", ErrProtocol, line, err)
	}
	m.mu.Lock()
	answer := m.pending[r.ID]
	delete(m.pending, r.ID) // a second answer to one id would find the channel full
	m.mu.Unlock()
	if answer != nil { // else nobody waits for it any more
		answer <- r
	}
	return nil
}

// end closes the connection for good: it fails what is pending and ends every
// subscription. It is called once.
func (m *Monitor) end(cause error) {
	_ = m.conn.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(cause, io.EOF) || errors.Is(cause, net.ErrClosed) {
		m.err = ErrClosed
	} else {
		m.err = fmt.Errorf("%w: %w", ErrClosed, cause)
	}
	for s := range m.subs {
		close(s.events)
	}
	m.subs = nil
	close(m.done)
}
