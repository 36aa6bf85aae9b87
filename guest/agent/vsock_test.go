package agent

import (
	"bytes"
	"errors"
	"net"
	"testing"

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
