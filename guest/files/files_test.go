package files

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/test/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a container's root, and a guest that serves it as container "c".
type bench struct {
	root    string
	sockets *Sockets
	address string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	need.Root(t, "to give files to users")
	b := &bench{root: t.TempDir(), sockets: NewSockets(filepath.Join(t.TempDir(), "sockets"))}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "files"))
	if err != nil {
		t.Fatal(err)
	}
	b.address = l.Addr().String()
	root := func(id string) (*os.File, error) {
		if id != "c" {
			return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
		}
		return os.Open(b.root)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := Serve(ctx, l, root, b.sockets, Copies(b.sockets.dir), slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		serving.Wait()
	})
	return b
}

// ask makes a request, and returns the connection with the guest's first answer.
func (b *bench) ask(t *testing.T, r streamwire.Request) (net.Conn, error) {
	t.Helper()
	conn, err := net.Dial("unix", b.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if r.Container == "" {
		r.Container = "c"
	}
	if err := streamwire.WriteRequest(conn, r); err != nil {
		t.Fatal(err)
	}
	return conn, streamwire.ReadAnswer(conn)
}

// entry is one of an archive.
func entry(name string, kind byte, text string) tar.Header {
	h := tar.Header{Name: name, Typeflag: kind, Mode: 0o640, Uid: 12, Gid: 34, ModTime: time.Unix(1e9, 0)}
	if kind == tar.TypeReg {
		h.Size = int64(len(text))
		h.PAXRecords = map[string]string{"comment": text}
	} else {
		h.Linkname = text
	}
	return h
}

func archive(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		text := h.PAXRecords["comment"]
		h.PAXRecords = nil
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// unpack sends an archive and returns the guest's last answer.
func (b *bench) unpack(t *testing.T, r streamwire.Request, archive []byte) error {
	t.Helper()
	r.Operation = streamwire.Unpack
	conn, err := b.ask(t, r)
	if err != nil {
		return err
	}
	out := &outgoing{conn: conn}
	if _, err := out.Write(archive); err != nil {
		t.Fatal(err)
	}
	if err := streamwire.SendEnd(conn); err != nil {
		t.Fatal(err)
	}
	return streamwire.ReadAnswer(conn)
}

// pack returns the entries of an archive, and the content of its files.
func (b *bench) pack(t *testing.T, r streamwire.Request) (names []string, content map[string]string, err error) {
	t.Helper()
	r.Operation = streamwire.Pack
	conn, err := b.ask(t, r)
	if err != nil {
		return nil, nil, err
	}
	content = map[string]string{}
	for entries := tar.NewReader(&incoming{conn: conn}); ; {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return names, content, nil
		}
		if err != nil {
			return names, content, err
		}
		text, err := io.ReadAll(entries)
		if err != nil {
			return names, content, err
		}
		names = append(names, h.Name)
		content[h.Name] = string(text) + h.Linkname
	}
}

func (b *bench) file(t *testing.T, name string) (string, *unix.Stat_t) {
	t.Helper()
	path := filepath.Join(b.root, name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", &st
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), &st
}

func TestAnArchiveIsWrittenWithItsModesAndTimes(t *testing.T) {
	b := newBench(t)
	program := entry("bin/tool", tar.TypeReg, "tool")
	program.Mode = 0o4755
	err := b.unpack(t, streamwire.Request{Path: "/new/dir"}, archive(t,
		entry("bin/", tar.TypeDir, ""), program, entry("./a", tar.TypeReg, "text"), entry("/link", tar.TypeSymlink, "/etc/passwd"),
		entry("hard", tar.TypeLink, "a"), entry("empty", tar.TypeReg, "")))
	if err != nil {
		t.Fatal(err)
	}
	text, st := b.file(t, "new/dir/a")
	if text != "text" || st.Mode&0o7777 != 0o640 || st.Uid != 0 || st.Gid != 0 || st.Mtim.Sec != 1e9 || st.Nlink != 2 {
		t.Errorf("%q, %+v", text, st)
	}
	if _, st := b.file(t, "new/dir/bin/tool"); st.Mode&0o7777 != 0o4755 {
		t.Errorf("mode %o", st.Mode)
	}
	if to, err := os.Readlink(filepath.Join(b.root, "new/dir/link")); err != nil || to != "/etc/passwd" {
		t.Errorf("link to %q, %v", to, err)
	}
}

func TestOwnersAreKeptIfThatIsAskedFor(t *testing.T) {
	b := newBench(t)
	if err := b.unpack(t, streamwire.Request{Path: "/", Owners: true}, archive(t, entry("a", tar.TypeReg, "x"))); err != nil {
		t.Fatal(err)
	}
	if _, st := b.file(t, "a"); st.Uid != 12 || st.Gid != 34 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
}

func TestWhatIsThereIsReplaced(t *testing.T) {
	b := newBench(t)
	for name, make := range map[string]func(string) error{
		"longer": func(p string) error { return os.WriteFile(p, []byte("much longer"), 0o600) },
		"link":   func(p string) error { return os.Symlink("/nowhere", p) },
		"fifo":   func(p string) error { return unix.Mkfifo(p, 0o600) },
	} {
		if err := make(filepath.Join(b.root, name)); err != nil {
			t.Fatal(err)
		}
		if err := b.unpack(t, streamwire.Request{Path: "/"}, archive(t, entry(name, tar.TypeReg, "new"))); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if text, _ := b.file(t, name); text != "new" {
			t.Errorf("%s: %q", name, text)
		}
	}
}

// TestNothingLeavesTheContainer: neither the path of a request nor a name in an
// archive, by whatever links there are.
func TestNothingLeavesTheContainer(t *testing.T) {
	b := newBench(t)
	outside := t.TempDir()
	up := strings.Repeat("../", 30)
	for name, to := range map[string]string{"absolute": outside, "relative": up + strings.TrimPrefix(outside, "/")} {
		if err := os.Symlink(to, filepath.Join(b.root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ path, name string }{
		{"/", "absolute/x"}, {"/", "relative/x"}, {"/", "../x"}, {"/", up + "tmp/x"}, {"/", "a/../../x"},
	} {
		if err := b.unpack(t, streamwire.Request{Path: c.path}, archive(t, entry(c.name, tar.TypeReg, "x"))); err == nil {
			t.Errorf("%s in %s is written", c.name, c.path)
		}
	}
	if err := b.unpack(t, streamwire.Request{Path: "/"}, archive(t, entry("h", tar.TypeLink, "absolute/secret"))); err == nil {
		t.Error("a hard link leaves")
	}
	// A path of a request is the container's: its links mean what they mean there.
	if err := b.unpack(t, streamwire.Request{Path: "/absolute/../" + up + "deep"}, archive(t, entry("x", tar.TypeReg, "x"))); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("outside has %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/absolute/secret", "/relative/secret", up + outside + "/secret"} {
		if names, _, err := b.pack(t, streamwire.Request{Path: path}); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v, %v", path, names, err)
		}
	}
	if _, content, err := b.pack(t, streamwire.Request{Path: "/absolute"}); err != nil || content["absolute"] != outside {
		t.Errorf("a link is packed as %v, %v", content, err)
	}
}

func TestAnArchiveHasWhatThePathNames(t *testing.T) {
	b := newBench(t)
	for name, text := range map[string]string{"dir/a": "one", "dir/sub/b": strings.Repeat("two", 50000)} {
		if err := os.MkdirAll(filepath.Join(b.root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(b.root, "dir", "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Symlink("a", filepath.Join(b.root, "dir", "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path  string
		entry bool
		want  []string
	}{
		{"/dir", false, []string{"dir/", "dir/a", "dir/link", "dir/sub/", "dir/sub/b"}},
		{"/dir/", true, []string{"dir/"}},
		{"dir/sub/b", false, []string{"b"}},
		{"/dir/link", false, []string{"link"}},
		{"/", true, []string{"./"}},
	} {
		names, content, err := b.pack(t, streamwire.Request{Path: c.path, Entry: c.entry})
		if err != nil || !slices.Equal(names, c.want) {
			t.Errorf("%s: %q, %v; want %q", c.path, names, err, c.want)
		}
		for name, text := range content {
			if strings.HasSuffix(name, "sub/b") && len(text) != 150000 || strings.HasSuffix(name, "link") && text != "a" {
				t.Errorf("%s: %d bytes", name, len(text))
			}
		}
	}
}

func TestRefusalsHaveTheClassOfTheReason(t *testing.T) {
	b := newBench(t)
	if err := os.WriteFile(filepath.Join(b.root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := entry("f", tar.TypeFifo, "")
	for name, c := range map[string]struct {
		err  error
		want func(error) bool
	}{
		"no such container":      {b.unpack(t, streamwire.Request{Container: "d", Path: "/"}, nil), errdefs.IsNotFound},
		"a file is no directory": {b.unpack(t, streamwire.Request{Path: "/file"}, nil), errdefs.IsInvalidArgument},
		"a fifo":                 {b.unpack(t, streamwire.Request{Path: "/"}, archive(t, fifo)), errdefs.IsNotImplemented},
		"no archive":             {b.unpack(t, streamwire.Request{Path: "/"}, bytes.Repeat([]byte{1}, 1024)), errdefs.IsInvalidArgument},
		"half an archive":        {b.unpack(t, streamwire.Request{Path: "/"}, archive(t, entry("a", tar.TypeReg, "text"))[:514]), errdefs.IsInvalidArgument},
	} {
		if !c.want(c.err) {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	if _, _, err := b.pack(t, streamwire.Request{Path: "/nothing/here"}); !errdefs.IsNotFound(err) {
		t.Errorf("nothing there: %v", err)
	}
}

func TestASocketLeadsToTheHostUntilItsContainerIsGone(t *testing.T) {
	b := newBench(t)
	id := strings.Repeat("c", 120) // its path is longer than an address may be
	request := streamwire.Request{Operation: streamwire.Forward, Container: id, Path: "0", Mode: 0o666, User: 1, Group: 2}
	host, err := b.ask(t, request)
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.ask(t, request)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.sockets.dir, id)
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "0"), &st); err != nil || st.Mode != unix.S_IFSOCK|0o666 || st.Uid != 1 || st.Gid != 2 {
		t.Fatalf("socket %+v, %v", st, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	program, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/0", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	// Whichever connection of the host was first.
	taken := make(chan net.Conn, 2)
	var waiting sync.WaitGroup
	for _, conn := range []net.Conn{host, second} {
		waiting.Go(func() {
			if streamwire.ReadAnswer(conn) == nil {
				taken <- conn
			}
		})
	}
	conn := <-taken
	var frame streamwire.Frame
	if err := frame.Send(conn, copy(frame.Room(), "hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(program, buf); err != nil || string(buf) != "hello" {
		t.Errorf("%q, %v", buf, err)
	}
	if _, err := program.Write([]byte("world")); err != nil {
		t.Fatal(err)
	}
	if data, err := frame.Receive(conn); err != nil || string(data) != "world" {
		t.Errorf("%q, %v", data, err)
	}
	b.sockets.Close(id)
	waiting.Wait() // the other one is told
	if len(taken) != 0 {
		t.Error("both were taken")
	}
}

func TestNamesOfSocketsAreChecked(t *testing.T) {
	b := newBench(t)
	for _, r := range []streamwire.Request{{Path: ""}, {Path: "../x"}, {Path: "a/b"}, {Path: "0", Container: ".."}, {Path: "0", Container: "a/b"}} {
		r.Operation = streamwire.Forward
		if _, err := b.ask(t, r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
