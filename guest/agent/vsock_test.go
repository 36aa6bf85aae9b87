package agent

import (
	"bytes"
	"errors"
	"net"
	"testing"

	"github.com/mdlayher/vsock"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pieces records the sizes of writes, and fails after some bytes.
type pieces struct {
	net.Conn
	sizes []int
	all   bytes.Buffer
	limit int
}

var errFull = errors.New("full")

func (p *pieces) Write(b []byte) (int, error) {
	p.sizes = append(p.sizes, len(b))
	if room := p.limit - p.all.Len(); len(b) > room {
		n, _ := p.all.Write(b[:room])
		return n, errFull
	}
	return p.all.Write(b)
}

func TestWritesAreSplit(t *testing.T) {
	for _, size := range []int{0, 1, maxPacket, maxPacket + 1, 5*maxPacket - 1} {
		p := &pieces{limit: 1 << 20}
		data := bytes.Repeat([]byte("ab"), size)[:size]
		n, err := smallWrites{p}.Write(data)
		if n != size || err != nil || !bytes.Equal(p.all.Bytes(), data) {
			t.Errorf("%d bytes: %d, %v", size, n, err)
		}
		for _, s := range p.sizes {
			if s > maxPacket {
				t.Errorf("a write of %d bytes", s)
			}
		}
	}
	p := &pieces{limit: maxPacket + 5}
	if n, err := (smallWrites{p}).Write(make([]byte, 3*maxPacket)); n != maxPacket+5 || !errors.Is(err, errFull) {
		t.Errorf("%d, %v", n, err)
	}
}

// callers is a listener to which somebody comes from each of the addresses.
type callers struct {
	net.Listener
	from   []net.Addr
	closed []net.Addr
}

type caller struct {
	net.Conn
	from   net.Addr
	closed *[]net.Addr
}

func (c caller) RemoteAddr() net.Addr { return c.from }
func (c caller) Close() error         { *c.closed = append(*c.closed, c.from); return nil }

func TestOnlyTheHostIsHeard(t *testing.T) {
	guest, host := &vsock.Addr{ContextID: 3}, &vsock.Addr{ContextID: hostCID}
	l := &callers{from: []net.Addr{&vsock.Addr{ContextID: 1}, &net.UnixAddr{}, guest, host}}
	conn, err := fromHost{l}.Accept()
	if err != nil || conn.RemoteAddr() != host {
		t.Errorf("%v, %v", conn, err)
	}
	if closed := *conn.(caller).closed; len(closed) != 3 || closed[2] != guest {
		t.Errorf("sent away: %v", closed)
	}
	if _, err := (fromHost{l}).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the last: %v", err)
	}
}

func (l *callers) Accept() (net.Conn, error) {
	if len(l.from) == 0 {
		return nil, net.ErrClosed
	}
	c := caller{from: l.from[0], closed: &l.closed}
	l.from = l.from[1:]
	return c, nil
}
