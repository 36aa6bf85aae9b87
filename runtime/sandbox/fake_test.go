package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/runtime/sizing"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// fakeVM is a virtual machine in which a fakeAgent listens. The real ones are
// tried by test/e2e.
type fakeVM struct {
	agent *fakeAgent
	done  chan struct{}
	once  sync.Once
	tasks sync.WaitGroup

	mu      sync.Mutex
	err     error
	conns   []net.Conn // the host's ends
	disks   []string   // that are attached, and shares
	nics    []string   // the same
	share   error      // what attaching one gives
	entries []string   // of shares

	limits sizing.Size // none: it cannot grow
}

func (v *fakeVM) Attach(_ context.Context, d hypervisor.Disk) (hypervisor.Attachment, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.disks = append(v.disks, d.ID)
	return hypervisor.Attachment{PCIPath: "02/00"}, nil
}

func (v *fakeVM) Detach(_ context.Context, id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.disks = slices.DeleteFunc(v.disks, func(d string) bool { return d == id })
	return nil
}

// attached are the disks that the VM has, in the order of their ids.
func (v *fakeVM) attached() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(slices.Values(v.disks))
}

func (v *fakeVM) WaitReady(context.Context) error         { return nil }
func (v *fakeVM) Run(context.Context) error               { return nil }
func (v *fakeVM) Pid() int                                { return fakePid }
func (v *fakeVM) Done() <-chan struct{}                   { return v.done }
func (v *fakeVM) Tail() string                            { return "" }
func (v *fakeVM) Accelerator() (qemu.Accelerator, string) { return qemu.AcceleratorTCG, "a test" }
func (v *fakeVM) Timings() qemu.Timings                   { return qemu.Timings{} }
func (v *fakeVM) Kill(context.Context) error              { v.end(nil); return nil }
func (v *fakeVM) Err() error                              { v.mu.Lock(); defer v.mu.Unlock(); return v.err }

const fakePid = 4242

// end is the end of the VM, by itself if err is not nil.
func (v *fakeVM) end(err error) {
	v.once.Do(func() {
		v.mu.Lock()
		v.err = err
		for _, c := range v.conns {
			_ = c.Close()
		}
		v.mu.Unlock()
		close(v.done)
		v.agent.mu.Lock()
		defer v.agent.mu.Unlock()
		for _, p := range v.agent.processes {
			p.exit(statusKilled)
		}
	})
}

// fakeAgent answers with what a test puts into it, and has processes that do
// what a test says.
type fakeAgent struct {
	pb.AgentServiceService // calls that no test expects panic
	wire, noFiles          bool
	keptCopies                         // what became of the copies
	asked                              // what it was asked to create
	ooms                   chan string // unbuffered: whoever sends knows that it was taken

	mu        sync.Mutex
	processes map[agentclient.Process]*fakeProcess
	calls     []string
	fail      map[string]error         // by method
	hold      map[string]chan struct{} // by method: the answer waits until it is closed
	held      map[string]chan struct{} // by method: closed when the answer waits
	copied    []*pb.CopyFileRequest
	created   []*pb.CreateContainerRequest
	execs     []*pb.ExecProcessRequest
	updated   *pb.LinuxResources
	requests  []streamwire.Request // for files
	forwards  chan net.Conn        // connections that wait for somebody in the guest
	block     uint64               // of memory, in bytes
	kills     uint64               // for want of memory
	counts    bool                 // the agent says so in its statistics
}

type fakeProcess struct {
	exited         chan struct{}
	status         int
	once           sync.Once
	stdout, stderr chan []byte
	stdin          chan []byte
}

func newFakeAgent() *fakeAgent {
	return &fakeAgent{
		processes: map[agentclient.Process]*fakeProcess{}, ooms: make(chan string), forwards: make(chan net.Conn, 8), counts: true,
		fail: map[string]error{}, hold: map[string]chan struct{}{}, held: map[string]chan struct{}{},
	}
}

// exit ends a process as a shell would say, and its outputs.
func (p *fakeProcess) exit(status int) {
	p.once.Do(func() {
		p.status = status
		close(p.stdout)
		close(p.stderr)
		close(p.exited)
	})
}

// called records a call, waits if it is held, and returns its failure.
func (a *fakeAgent) called(ctx context.Context, method string, args ...any) error {
	a.mu.Lock()
	a.calls = append(a.calls, strings.TrimSpace(method+" "+fmt.Sprintln(args...)))
	hold, held, err := a.hold[method], a.held[method], a.fail[method]
	delete(a.held, method)
	a.mu.Unlock()
	if held != nil {
		close(held)
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	return nil
}

// holding makes a method wait, and returns what tells that it does and what
// lets it go.
func (a *fakeAgent) holding(method string) (held <-chan struct{}, release func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	hold, reached := make(chan struct{}), make(chan struct{})
	a.hold[method], a.held[method] = hold, reached
	return reached, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.hold, method)
		close(hold)
	}
}

func (a *fakeAgent) failing(method string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail[method] = err
}

func (a *fakeAgent) add(p agentclient.Process) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.processes[p] = &fakeProcess{
		exited: make(chan struct{}), stdout: make(chan []byte, 8), stderr: make(chan []byte, 8), stdin: make(chan []byte, 8),
	}
}

func (a *fakeAgent) process(container, exec string) (*fakeProcess, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if exec == container { // as the guest's agent has it
		exec = ""
	}
	if p := a.processes[agentclient.Process{Container: container, Exec: exec}]; p != nil {
		return p, nil
	}
	return nil, errgrpc.ToGRPC(fmt.Errorf("process %s/%s: %w", container, exec, errdefs.ErrNotFound))
}

// made are the calls that were made so far.
func (a *fakeAgent) made() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls)
}

// of is process for a test.
func (a *fakeAgent) of(t *testing.T, container, exec string) *fakeProcess {
	t.Helper()
	p, err := a.process(container, exec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (a *fakeAgent) serve(conn net.Conn) {
	server, err := ttrpc.NewServer()
	if err != nil {
		panic(err)
	}
	pb.RegisterAgentServiceService(server, a)
	pb.RegisterHealthService(server, fakeHealth{})
	l := &oneConn{conn: conn, closed: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // the end of the connection is the end of the server
		<-l.gone()
		cancel()
		_ = server.Close()
	}()
	_ = server.Serve(ctx, l)
}

func (a *fakeAgent) serveStream(conn net.Conn) {
	defer conn.Close()
	hello, err := streamwire.ReadHello(conn)
	if err != nil {
		return
	}
	p, err := a.process(hello.Container, hello.Exec)
	if err := streamwire.WriteAnswer(conn, err); err != nil || p == nil {
		return
	}
	var f streamwire.Frame
	if hello.Stream == streamwire.Stdin {
		for {
			data, err := f.Receive(conn)
			if err == io.EOF {
				close(p.stdin)
			}
			if err != nil {
				return
			}
			p.stdin <- slices.Clone(data)
		}
	}
	from := p.stdout
	if hello.Stream == streamwire.Stderr {
		from = p.stderr
	}
	for data := range from {
		if f.Send(conn, copy(f.Room(), data)) != nil {
			return
		}
	}
	_ = streamwire.SendEnd(conn)
	_, _ = conn.Read(make([]byte, 1)) // the host closes
}

// oneConn is a listener that accepts one connection, and knows its end.
type oneConn struct {
	conn   net.Conn
	once   sync.Once
	closed chan struct{}
	taken  bool
}

type watchedConn struct {
	net.Conn
	l *oneConn
}

func (c watchedConn) Close() error {
	c.l.once.Do(func() { close(c.l.closed) })
	return c.Conn.Close()
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return watchedConn{l.conn, l}, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}
func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}
func (l *oneConn) Addr() net.Addr        { return l.conn.LocalAddr() }
func (l *oneConn) gone() <-chan struct{} { return l.closed }

type fakeHealth struct{ pb.HealthService }

func (fakeHealth) Check(context.Context, *pb.CheckRequest) (*pb.HealthCheckResponse, error) {
	return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_SERVING}, nil
}

// recorder is a Sink that remembers, and lets a test wait.
type recorder struct {
	mu     sync.Mutex
	events []string
	more   chan struct{}
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
	close(r.more)
	r.more = make(chan struct{})
}

func (r *recorder) Created(req *CreateRequest, _ int)     { r.add("create %s", req.ID) }
func (r *recorder) Started(id string, _ int)              { r.add("start %s", id) }
func (r *recorder) ExecAdded(id, exec string)             { r.add("exec-added %s/%s", id, exec) }
func (r *recorder) ExecStarted(id, exec string, _ int)    { r.add("exec-started %s/%s", id, exec) }
func (r *recorder) OOM(id string)                         { r.add("oom %s", id) }
func (r *recorder) Paused(id string)                      { r.add("paused %s", id) }
func (r *recorder) Resumed(id string)                     { r.add("resumed %s", id) }
func (r *recorder) Exited(id, exec string, _ int, e Exit) { r.add("exit %s/%s %d", id, exec, e.Status) }
func (r *recorder) Deleted(id string, _ int, e Exit)      { r.add("delete %s %d", id, e.Status) }

// await waits for an event.
func (r *recorder) await(t *testing.T, event string) {
	t.Helper()
	end := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		found, more := slices.Contains(r.events, event), r.more
		r.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-end:
			t.Fatalf("no event %q within 20 s; there are %q", event, r.all())
		}
	}
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// world is a sandbox with a fake VM, and what is around it.
type world struct {
	*Sandbox
	agent  *fakeAgent
	events *recorder
	vm     *fakeVM
	starts int // of VMs
	config configs.Config
	dir    string
}

func newWorld(t *testing.T, agent *fakeAgent) *world {
	t.Helper()
	w := &world{agent: agent, events: &recorder{more: make(chan struct{})}, dir: t.TempDir(), config: configs.Default()}
	w.config.StateDir, w.config.CacheDir = filepath.Join(w.dir, "state"), filepath.Join(w.dir, "cache")
	w.config.Network.Host = configs.HostNetworkLoopback
	w.config.Hypervisor.Path, w.config.Vsock.DevicePath = "true", "true"
	w.vm = &fakeVM{agent: agent, done: make(chan struct{})}
	w.Sandbox = New("ns", w.events, nil, log.L)
	w.start = func(_ context.Context, spec qemu.Spec) (bootedVM, error) {
		w.starts++
		var r qemu.Record
		r.QEMU.Pid = fakePid
		return w.vm, spec.OnStarted(r)
	}
	t.Cleanup(func() {
		if err := w.Close(context.Background()); err != nil {
			t.Error(err)
		}
		w.vm.end(nil)
		w.vm.tasks.Wait()
	})
	return w
}

// request is for a container whose rootfs is a writable image alone, and whose
// output goes to the file "out" in its bundle.
func (w *world) request(t *testing.T, id, spec string) *CreateRequest {
	t.Helper()
	bundle := filepath.Join(w.dir, id)
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	if spec == "" {
		spec = `{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{}}`
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	return &CreateRequest{
		ID: id, Bundle: bundle, Config: w.config,
		Rootfs: []rootfs.Mount{
			{Type: "ext4", Source: writableImage(t, bundle), Options: []string{"rw", "loop"}},
			{Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper", Options: []string{"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "rbind"}},
		},
		Streams: stdio.Paths{Stdout: "file://" + filepath.Join(bundle, "out")},
	}
}

// running is a world with the container c, which runs.
func running(t *testing.T, agent *fakeAgent) *world {
	t.Helper()
	w := newWorld(t, agent)
	if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
		t.Fatal(err)
	}
	if pid, err := w.Start(t.Context(), "c", ""); err != nil || pid != fakePid {
		t.Fatalf("pid %d, %v", pid, err)
	}
	return w
}

// exec adds an exec whose output goes to the file of its id.
func (w *world) exec(t *testing.T, id string) {
	t.Helper()
	err := w.Exec(&ExecRequest{
		ID: "c", Exec: id, Process: &pb.Process{Args: []string{"x"}, Cwd: "/"},
		Streams: stdio.Paths{Stdout: "file://" + filepath.Join(w.dir, id)},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) startedExec(t *testing.T, id string) *fakeProcess {
	t.Helper()
	w.exec(t, id)
	if pid, err := w.Start(t.Context(), "c", id); err != nil || pid != fakePid {
		t.Fatalf("start %s: pid %d, %v", id, pid, err)
	}
	return w.agent.of(t, "c", id)
}

func ok(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
