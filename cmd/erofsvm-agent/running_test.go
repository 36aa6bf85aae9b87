package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/guest/layout"
)

// started creates and starts a container.
func (g *guest) started(t *testing.T, spec *pb.Spec, id string) agentclient.Process {
	t.Helper()
	if err := g.client.CreateContainer(t.Context(), &pb.CreateContainerRequest{ContainerId: id, Storages: layers(id), OCI: spec}); err != nil {
		t.Fatal(err)
	}
	if err := g.client.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return agentclient.Process{Container: id}
}

// removed kills a container, unless it has ended, and removes it.
func (g *guest) removed(t *testing.T, p agentclient.Process) int {
	t.Helper()
	if err := g.client.SignalProcess(t.Context(), p, syscall.SIGKILL); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		t.Error(err)
	}
	code, err := g.client.WaitProcess(t.Context(), p)
	if err != nil {
		t.Error(err)
	}
	if err := g.client.RemoveContainer(t.Context(), p.Container); err != nil {
		t.Error(err)
	}
	return code
}

// exec runs a process of a container to its end.
func (g *guest) exec(t *testing.T, container, id string, args ...string) (stdout string, code int) {
	t.Helper()
	if err := g.client.ExecProcess(t.Context(), &pb.ExecProcessRequest{ContainerId: container, ExecId: id, Process: containerSpec(container, args...).Process}); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := g.collect(t, agentclient.Process{Container: container, Exec: id})
	if code != 0 {
		t.Logf("%q: status %d, %s", args, code, stderr)
	}
	return stdout, code
}

// testSignalAll: a signal to all reaches a process that the host does not know
// of; one to the container's own process does not.
func testSignalAll(t *testing.T, g *guest) {
	ctx := t.Context()
	p := g.started(t, containerSpec("family", "family"), "family")
	var said, all string
	await := func(lines ...string) {
		t.Helper()
		for buf := make([]byte, 100); ; {
			missing := slices.ContainsFunc(lines, func(l string) bool { return !strings.Contains(said, l+"\n") })
			if !missing {
				said = ""
				return
			}
			n, err := g.client.ReadStdout(ctx, p, buf)
			if err != nil {
				t.Fatalf("%q, and then %v", said, err)
			}
			said, all = said+string(buf[:n]), all+string(buf[:n])
		}
	}
	await("parent ready", "child ready")
	if err := g.client.SignalProcess(ctx, p, syscall.SIGUSR1); err != nil {
		t.Error(err)
	}
	await("parent user defined signal 1")
	if err := g.client.SignalAll(ctx, "family", syscall.SIGHUP); err != nil {
		t.Error(err)
	}
	await("parent hangup", "child hangup")

	// What is paused has the signal when it goes on, and not before.
	if _, err := g.agent.PauseContainer(ctx, &pb.PauseContainerRequest{ContainerId: "family"}); err != nil {
		t.Fatal(err)
	}
	if err := g.client.SignalAll(ctx, "family", syscall.SIGHUP); err != nil {
		t.Error(err)
	}
	if _, err := g.agent.ResumeContainer(ctx, &pb.ResumeContainerRequest{ContainerId: "family"}); err != nil {
		t.Errorf("it is paused no more: %v", err)
	}
	await("parent hangup", "child hangup")
	if strings.Contains(all, "child user") {
		t.Error("a signal to the first process has reached another")
	}
	if code := g.removed(t, p); code != 137 {
		t.Errorf("status %d", code)
	}
	if err := g.client.SignalAll(ctx, "family", syscall.SIGHUP); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("signal to what is gone: %v", err)
	}
}

// stream connects to a stream of a process.
func (g *guest) stream(t *testing.T, kind streamwire.Kind, p agentclient.Process) (net.Conn, error) {
	t.Helper()
	conn := g.dial(t, layout.PortStreams)
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if err := streamwire.WriteHello(conn, streamwire.Hello{Stream: kind, Container: p.Container, Exec: p.Exec}); err != nil {
		t.Fatal(err)
	}
	return conn, streamwire.ReadAnswer(conn)
}

func (g *guest) mustStream(t *testing.T, kind streamwire.Kind, p agentclient.Process) net.Conn {
	t.Helper()
	conn, err := g.stream(t, kind, p)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// receive reads an output to its end.
func receive(conn net.Conn, to io.Writer) error {
	defer conn.Close()
	var frame streamwire.Frame
	for {
		data, err := frame.Receive(conn)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		_, _ = to.Write(data)
	}
}

func send(conn net.Conn, data []byte) error {
	var frame streamwire.Frame
	for len(data) > 0 {
		n := copy(frame.Room(), data)
		if err := frame.Send(conn, n); err != nil {
			return err
		}
		data = data[n:]
	}
	return streamwire.SendEnd(conn)
}

func testStreams(t *testing.T, g *guest) {
	ctx := t.Context()
	p := g.started(t, containerSpec("streams", "cat"), "streams")
	stdin, stdout, stderr := g.mustStream(t, streamwire.Stdin, p), g.mustStream(t, streamwire.Stdout, p), g.mustStream(t, streamwire.Stderr, p)
	for _, c := range []struct {
		kind streamwire.Kind
		p    agentclient.Process
		want error
	}{
		{streamwire.Stdout, p, errdefs.ErrAlreadyExists},
		{streamwire.Stdout, agentclient.Process{Container: "streams", Exec: "e"}, errdefs.ErrNotFound},
		{streamwire.Stdin, agentclient.Process{Container: "nobody"}, errdefs.ErrNotFound},
	} {
		if _, err := g.stream(t, c.kind, c.p); !errors.Is(err, c.want) {
			t.Errorf("%s of %+v: %v, want %v", c.kind, c.p, err, c.want)
		}
	}
	if _, err := g.client.ReadStdout(ctx, p, make([]byte, 1)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a read of a stream that a connection has: %v", err)
	}

	data := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	var got, errs bytes.Buffer
	var all sync.WaitGroup
	began := time.Now()
	all.Go(func() {
		if err := send(stdin, data); err != nil {
			t.Error(err)
		}
	})
	all.Go(func() {
		if err := receive(stderr, &errs); err != nil {
			t.Error(err)
		}
	})
	if err := receive(stdout, &got); err != nil {
		t.Error(err)
	}
	all.Wait()
	if !bytes.Equal(got.Bytes(), data) || errs.Len() != 0 {
		t.Errorf("%d bytes of %d came back, %d as errors", got.Len(), len(data), errs.Len())
	}
	t.Logf("%d MiB there and back: %v", len(data)>>20, time.Since(began))
	if _, err := stdin.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the guest does not close an input that has ended: %v", err)
	}
	if code := g.removed(t, p); code != 0 {
		t.Errorf("status %d", code)
	}

	const much = 32 << 20
	rates := map[string]float64{}
	for way, read := range map[string]func(agentclient.Process) (int, error){
		"calls": func(p agentclient.Process) (int, error) {
			out, err := output(ctx, g.client.ReadStdout, p)
			return len(out), err
		},
		"a connection": func(p agentclient.Process) (int, error) {
			var got bytes.Buffer
			err := receive(g.mustStream(t, streamwire.Stdout, p), &got)
			return got.Len(), err
		},
	} {
		p = g.started(t, containerSpec("much", "zeros", strconv.Itoa(much)), "much")
		began = time.Now()
		if n, err := read(p); err != nil || n != much {
			t.Errorf("by %s: %d bytes, %v", way, n, err)
		}
		rates[way] = much / 1e6 / time.Since(began).Seconds()
		g.removed(t, p)
	}
	t.Logf("output in MB/s: by calls %.1f, by a connection %.1f", rates["calls"], rates["a connection"])

	p = g.started(t, containerSpec("ignored", "flood", "1000000"), "ignored")
	_ = g.mustStream(t, streamwire.Stdout, p).Close()
	if code, err := g.client.WaitProcess(ctx, p); code != 0 || err != nil {
		t.Errorf("a process whose output the host does not want: %d, %v", code, err)
	}
	g.removed(t, p)

	p = g.started(t, containerSpec("deaf", "deaf"), "deaf")
	if _, err := g.mustStream(t, streamwire.Stdin, p).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the guest does not close an input that the process has closed: %v", err)
	}
	g.removed(t, p)

	spec := containerSpec("terminal", "tty")
	spec.Process.Terminal = true
	p = g.started(t, spec, "terminal")
	if _, err := g.stream(t, streamwire.Stderr, p); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("the error output beside a terminal: %v", err)
	}
	stdin = g.mustStream(t, streamwire.Stdin, p)
	if err := send(stdin, []byte("typed\n")); err != nil {
		t.Error(err)
	}
	got.Reset()
	if err := receive(g.mustStream(t, streamwire.Stdout, p), &got); err != nil || !strings.Contains(got.String(), "read typed") {
		t.Errorf("%q, %v", got.String(), err)
	}
	g.removed(t, p)
}

func testExecs(t *testing.T, g *guest) {
	ctx := t.Context()
	p := g.started(t, containerSpec("host", "cat"), "host")
	some := []string{"CAP_KILL"}
	full := &pb.Process{
		Args: []string{"payload", "facts"}, Cwd: "/tmp", Env: []string{"PATH=/nowhere:/", "MARK=of an exec"},
		User:            &pb.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 9}},
		Capabilities:    &pb.LinuxCapabilities{Bounding: some, Effective: some, Inheritable: some, Permitted: some, Ambient: some},
		Rlimits:         []*pb.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1, Hard: 2}},
		ApparmorProfile: "a-profile",
	}
	if err := g.client.ExecProcess(ctx, &pb.ExecProcessRequest{ContainerId: "host", ExecId: "full", Process: full}); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := g.collect(t, agentclient.Process{Container: "host", Exec: "full"})
	if code != 0 {
		t.Errorf("status %d, %s", code, stderr)
	}
	for _, want := range []string{"cwd: /tmp\n", "mark: of an exec\n", "Uid: 1000 1000", "Gid: 1001 1001", "Groups: 7 9", "core: 1 2\n", "CapEff: 0000000000000020\n", "CapBnd: 0000000000000020\n", "CapAmb: 0000000000000020\n", "NoNewPrivs: 0\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}

	for name, c := range map[string]struct {
		change func(*pb.Process)
		says   string
	}{
		"no such command": {func(p *pb.Process) { p.Args = []string{"nope"} }, `exec: "nope": executable file not found in $PATH`},
		"no such file":    {func(p *pb.Process) { p.Args = []string{"/nope"} }, `exec: "/nope": stat /nope: no such file or directory`},
		"no program":      {func(p *pb.Process) { p.Args = []string{"/who"} }, `exec: "/who": permission denied`},
		"a directory":     {func(p *pb.Process) { p.Args = []string{"/tmp"} }, `exec: "/tmp": is a directory`},
		"no such cwd":     {func(p *pb.Process) { p.Cwd = "/nope" }, `chdir to cwd ("/nope") set in config.json failed: no such file or directory`},
		"no directory":    {func(p *pb.Process) { p.Cwd = "/who" }, `chdir to cwd ("/who") set in config.json failed: not a directory`},
		"no such user":    {func(p *pb.Process) { p.User = &pb.User{UID: 1<<32 - 1} }, `unable to setup user`},
		"no such group":   {func(p *pb.Process) { p.User = &pb.User{GID: 1<<32 - 1} }, `unable to setup user`},
		"a bad limit":     {func(p *pb.Process) { p.Rlimits = []*pb.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}} }, `error setting rlimits for ready process`},
	} {
		t.Run(name, func(t *testing.T) {
			spec := containerSpec("host", "echo").Process
			c.change(spec)
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			for range 2 { // and the id is free again
				err := g.client.ExecProcess(ctx, &pb.ExecProcessRequest{ContainerId: "host", ExecId: "bad", Process: spec})
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v\nwant %s", err, c.says)
				}
			}
			if _, err := g.client.WaitProcess(ctx, agentclient.Process{Container: "host", Exec: "bad"}); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("wait: %v", err)
			}
		})
	}
	// The container's own process fails with the same words, at its creation.
	spec := containerSpec("bad", "x")
	spec.Process.Args = []string{"nope"}
	err := g.client.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "bad", Storages: layers("bad"), OCI: spec})
	if err == nil || !strings.Contains(err.Error(), `exec: "nope": executable file not found in $PATH`) {
		t.Errorf("create: %v", err)
	}

	_, err = g.agent.ExecProcess(ctx, &pb.ExecProcessRequest{ContainerId: "host", ExecId: "string", Process: full, StringUser: &pb.StringUser{Uid: "root"}})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("a user by name: %v", err)
	}
	if log := g.log(t); !strings.Contains(log, "a-profile") {
		t.Error("the log does not say that a profile was ignored")
	}

	terminal := containerSpec("host", "tty").Process
	terminal.Terminal, terminal.ConsoleSize = true, &pb.Box{Height: 7, Width: 8}
	if err := g.client.ExecProcess(ctx, &pb.ExecProcessRequest{ContainerId: "host", ExecId: "tty", Process: terminal}); err != nil {
		t.Fatal(err)
	}
	tty := agentclient.Process{Container: "host", Exec: "tty"}
	if _, err := g.client.WriteStdin(ctx, tty, []byte("x\n")); err != nil {
		t.Error(err)
	}
	if out, _, _ := g.collect(t, tty); !strings.Contains(out, "terminal 7 8") {
		t.Errorf("%q", out)
	}
	g.removed(t, p)
}

// testManyExecs counts what the agent holds before and after.
func testManyExecs(t *testing.T, g *guest) {
	p := g.started(t, containerSpec("many", "cat"), "many")
	// One that sees the guest's processes, and may look into the first.
	watch := containerSpec("watch", "cat")
	watch.Linux.Namespaces = watch.Linux.Namespaces[1:]
	looking := append([]string{"CAP_SYS_PTRACE"}, someCapabilities...)
	watch.Process.Capabilities = &pb.LinuxCapabilities{Bounding: looking, Effective: looking, Permitted: looking}
	watcher := g.started(t, watch, "watch")
	n := 0
	agent := func() map[string]int {
		n++
		spec := containerSpec("watch", "agent").Process
		spec.Capabilities = watch.Process.Capabilities
		id := fmt.Sprint("look", n)
		if err := g.client.ExecProcess(t.Context(), &pb.ExecProcessRequest{ContainerId: "watch", ExecId: id, Process: spec}); err != nil {
			t.Fatal(err)
		}
		out, stderr, code := g.collect(t, agentclient.Process{Container: "watch", Exec: id})
		if code != 0 {
			t.Fatalf("status %d, %s", code, stderr)
		}
		held := map[string]int{}
		for line := range strings.Lines(out) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			held[name], _ = strconv.Atoi(value)
		}
		return held
	}
	round := func(times int, id func(int) string) {
		for i := range times {
			exec := agentclient.Process{Container: "many", Exec: id(i)}
			if err := g.client.ExecProcess(t.Context(), &pb.ExecProcessRequest{ContainerId: "many", ExecId: exec.Exec, Process: containerSpec("many", "exit", "0").Process}); err != nil {
				t.Fatal(err)
			}
			// The streams by turns both ways.
			if i%2 == 0 {
				if _, _, code := g.collect(t, exec); code != 0 {
					t.Fatalf("exec %d: status %d", i, code)
				}
				continue
			}
			for _, kind := range []streamwire.Kind{streamwire.Stdout, streamwire.Stderr} {
				if err := receive(g.mustStream(t, kind, exec), io.Discard); err != nil {
					t.Fatal(err)
				}
			}
			if code, err := g.client.WaitProcess(t.Context(), exec); code != 0 || err != nil {
				t.Fatalf("exec %d: %d, %v", i, code, err)
			}
		}
	}
	const times = 200 // as many as the time of a test allows under emulation
	// The first hundred fill what stays: the last execs, the pools of the runtime.
	round(100, func(i int) string { return fmt.Sprint("warm", i) })
	before := agent()
	began := time.Now()
	round(times, func(i int) string { return fmt.Sprint("short", i) })
	took := time.Since(began)
	after := agent()
	t.Logf("%d execs: %v each; the agent held %v before and %v after", times, took/time.Duration(times), before, after)
	if before["Threads"] == 0 || before["Descriptors"] == 0 || before["VmRSS"] == 0 {
		t.Fatal("the agent was not seen")
	}
	if after["Threads"] > before["Threads"]+2 {
		t.Errorf("%d threads, %d before", after["Threads"], before["Threads"])
	}
	if after["Descriptors"] > before["Descriptors"]+6 {
		t.Errorf("%d descriptors, %d before", after["Descriptors"], before["Descriptors"])
	}
	if grown := after["VmRSS"] - before["VmRSS"]; grown > 8<<10 {
		t.Errorf("the agent has grown by %d KiB", grown)
	}
	g.removed(t, watcher)
	g.removed(t, p)
}
