package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// serveFiles answers requests: what is unpacked at /refused is refused at the end,
// and what is packed is its path.
func (a *fakeAgent) serveFiles(conn net.Conn) {
	r, err := streamwire.ReadRequest(conn)
	if err != nil {
		_ = conn.Close()
		return
	}
	a.mu.Lock()
	a.requests = append(a.requests, r)
	a.mu.Unlock()
	if r.Operation == streamwire.Forward {
		_ = streamwire.WriteAnswer(conn, nil)
		a.forwards <- conn
		return
	}
	defer conn.Close()
	if r.Operation == streamwire.Fetch || r.Operation == streamwire.Remove {
		a.serveCopies(conn, r)
		return
	}
	var f streamwire.Frame
	if r.Operation == streamwire.Pack {
		_ = streamwire.WriteAnswer(conn, nil)
		_ = f.Send(conn, copy(f.Room(), r.Path))
		if r.Path != "/broken" {
			_ = streamwire.SendEnd(conn)
		}
		return
	}
	_ = streamwire.WriteAnswer(conn, nil)
	for err == nil {
		_, err = f.Receive(conn)
	}
	var refusal error
	if r.Path == "/refused" {
		refusal = fmt.Errorf("no such thing: %w", errdefs.ErrInvalidArgument)
	}
	if errors.Is(err, io.EOF) {
		_ = streamwire.WriteAnswer(conn, refusal)
	}
}

func TestFilesGoIntoAContainerAndOutOfIt(t *testing.T) {
	w := running(t, newFakeAgent())
	archive := bytes.Repeat([]byte("archive "), 20000)
	if err := w.Unpack(t.Context(), "c", "/in", true, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := w.Pack(t.Context(), "c", "/out", true, &out); err != nil || out.String() != "/out" {
		t.Errorf("%q, %v", &out, err)
	}
	want := []streamwire.Request{
		{Operation: streamwire.Unpack, Container: "c", Path: "/in", Owners: true},
		{Operation: streamwire.Pack, Container: "c", Path: "/out", Entry: true},
	}
	if len(w.agent.requests) != 2 || w.agent.requests[0] != want[0] || w.agent.requests[1] != want[1] {
		t.Errorf("requests %+v", w.agent.requests)
	}
	if err := w.Unpack(t.Context(), "c", "/refused", false, strings.NewReader("x")); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("%v", err)
	}
	if err := w.Pack(t.Context(), "c", "/broken", false, io.Discard); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an archive that is not whole: %v", err)
	}
	if err := w.Pack(t.Context(), "d", "/out", false, io.Discard); !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
}

func TestAnAgentWithoutFilesIsNotAskedForThem(t *testing.T) {
	agent := newFakeAgent()
	agent.noFiles = true
	w := running(t, agent)
	if err := w.Unpack(t.Context(), "c", "/in", false, strings.NewReader("x")); !errdefs.IsNotImplemented(err) {
		t.Errorf("%v", err)
	}
}

// socketSpec is a spec with a mount of a socket.
func socketSpec(source string) string {
	return fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{},"mounts":[
		{"destination":"/run/s","type":"uds","source":%q}]}`, source)
}

func TestAProgramInTheGuestReachesTheHostsSocket(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o620); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Create(t.Context(), w.request(t, "c", socketSpec(path))); err != nil {
		t.Fatal(err)
	}
	if r := w.agent.requests[0]; r.Container != "c" || r.Path != "0" || r.Mode != 0o620 || r.User != uint32(os.Getuid()) {
		t.Errorf("request %+v", r)
	}
	// One program after the other, while the first is still there.
	for i := range 3 {
		guest := <-w.agent.forwards
		defer guest.Close()
		if err := streamwire.WriteAnswer(guest, nil); err != nil {
			t.Fatal(err)
		}
		_ = l.SetDeadline(time.Now().Add(20 * time.Second))
		host, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		var f streamwire.Frame
		text := fmt.Sprintf("program %d", i)
		if err := f.Send(guest, copy(f.Room(), text)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(host, got); err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := host.Write([]byte("back")); err != nil {
			t.Fatal(err)
		}
		if data, err := f.Receive(guest); err != nil || string(data) != "back" {
			t.Errorf("%q, %v", data, err)
		}
	}
}

func TestASocketThatIsNoneStopsTheCreation(t *testing.T) {
	for name, make := range map[string]func(string) error{
		"missing": func(string) error { return nil },
		"a file":  func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		w := newWorld(t, newFakeAgent())
		path := filepath.Join(t.TempDir(), "s")
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Create(t.Context(), w.request(t, "c", socketSpec(path))); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
