package qmp

import (
	"errors"
	"net"
	"testing"
)

// Whatever one line holds, the reader neither panics nor waits, and says of a line
// that is not a JSON object that it is not QMP.
func FuzzDispatch(f *testing.F) {
	for _, seed := range []string{
		`{"return": {}, "id": "1"}`, `{"event": "RESET", "data": {}}`, `{"error": {"class": "c", "desc": "d"}, "id": "1"}`,
		``, `null`, `[]`, `5`, `{"id": 1}`, `{"event": 1}`, `{"id": "1", "id": "1"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		conn, other := net.Pipe()
		defer other.Close()
		m := New(conn)
		m.started = true
		s := m.Subscribe()
		_, answer, err := m.expect()
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			err := m.dispatch(line)
			if err != nil && !errors.Is(err, ErrProtocol) {
				t.Errorf("error is %v", err)
			}
		}
		if len(s.events) > 0 && len(answer) > 0 {
			t.Error("one line is an event and an answer")
		}
		m.end(net.ErrClosed)
	})
}
