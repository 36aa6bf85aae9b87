package container

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/stream"
	"github.com/erofsvm/erofsvm/test/need"
)

func TestTerminalCrossesTheSocket(t *testing.T) {
	c, err := newConsoleSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		need.Missing(t, "no terminals here: %v", err)
	}
	defer master.Close()
	if err := unix.Sendmsg(int(c.child.Fd()), []byte("/dev/ptmx"), unix.UnixRights(int(master.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	got, err := c.receive()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	p := &process{terminal: true, stdout: stream.New(got)}
	if err := p.resize(12, 34); err != nil {
		t.Fatal(err)
	}
	size, err := unix.IoctlGetWinsize(int(master.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Row != 12 || size.Col != 34 {
		t.Errorf("%+v, %v", size, err)
	}
}

func TestTerminalThatWasNotSentIsAnError(t *testing.T) {
	c, err := newConsoleSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.receive(); !errors.Is(err, unix.EPROTO) {
		t.Errorf("%v", err)
	}
}
