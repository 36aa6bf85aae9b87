package container

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/guest/hugepage"
	"github.com/erofsvm/erofsvm/guest/podinit"
	"github.com/erofsvm/erofsvm/guest/storage"
	"github.com/erofsvm/erofsvm/guest/stream"
)

// Dirs are the places that a Manager works in.
type Dirs struct {
	Base  string // root filesystems, by container; exists
	State string // libcontainer's own records; is made
}

// Manager holds the containers of the guest.
type Manager struct {
	dirs   Dirs
	system storage.System
	ooms   *oomQueue
	huge   *hugepage.Pool
	pod    podinit.Namespace

	mu         sync.Mutex
	containers map[string]*Container
	gone       func(id string) // nil, or told of each container that is forgotten
}

// NewManager returns a Manager without containers. Root filesystems are mounted
// with the help of system.
func NewManager(dirs Dirs, system storage.System) *Manager {
	return &Manager{dirs: dirs, system: system, ooms: newOOMQueue(), huge: hugepage.New(hugepage.Dir), containers: map[string]*Container{}}
}

// OnRemoval has f called with the id of each container that is gone, removed or
// never made whole. f must not call the Manager. It is called before the first
// Create, once.
func (m *Manager) OnRemoval(f func(id string)) { m.gone = f }

// Steps is how long the steps of a Create took.
type Steps struct {
	Disks   time.Duration // until the last disk was there
	Mounts  time.Duration // the root filesystem
	Process time.Duration // the first process, as far as Start
}

// Create mounts the root filesystem of a new container and starts its first
// process as far as Start; with podPID in the pid namespace that the containers
// of the pod share. devices are disks that are block devices of the specification.
// On an error nothing is left.
func (m *Manager) Create(ctx context.Context, id string, storages []*pb.Storage, devices []*pb.Device, spec *pb.Spec, podPID bool) (Steps, error) {
	if err := storage.CheckID(id); err != nil {
		return Steps{}, err
	}
	if podPID {
		var err error
		if spec, err = m.inPod(ctx, spec); err != nil {
			return Steps{}, fmt.Errorf("container %s: %w", id, err)
		}
	}
	c, err := m.reserve(id)
	if err != nil {
		return Steps{}, err
	}
	begun := time.Now()
	if err := c.create(ctx, m.dirs, storages, devices, spec, m.system); err != nil {
		m.forget(id)
		return Steps{}, err
	}
	steps := Steps{Disks: c.mounted.Disks, Mounts: c.mounted.Rest}
	steps.Process = time.Since(begun) - steps.Disks - steps.Mounts
	c.toFrom(Creating, Created)
	return steps, nil
}

// SharePID makes the pid namespace that the containers of the pod share.
func (m *Manager) SharePID(ctx context.Context) error {
	_, err := m.pod.Path(ctx)
	return err
}

// inPod is the specification of a container that joins the pod's pid namespace.
func (m *Manager) inPod(ctx context.Context, spec *pb.Spec) (*pb.Spec, error) {
	for _, n := range spec.GetLinux().GetNamespaces() {
		if n.GetType() == string(specs.PIDNamespace) {
			return nil, fmt.Errorf("a pid namespace of its own and that of the pod: %w", errdefs.ErrInvalidArgument)
		}
	}
	path, err := m.pod.Path(ctx)
	if err != nil || spec.GetLinux() == nil {
		return spec, err
	}
	joined := proto.Clone(spec).(*pb.Spec)
	joined.Linux.Namespaces = append(joined.Linux.Namespaces, &pb.LinuxNamespace{Type: string(specs.PIDNamespace), Path: path})
	return joined, nil
}

// Start runs the program of a created container.
func (m *Manager) Start(id string) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	return c.start()
}

// Exec starts one more process in a running container.
func (m *Manager) Exec(id, exec string, process *pb.Process) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	return c.exec(exec, process)
}

// SignalAll sends a signal to every process of a container. Unless it is SIGKILL
// it waits, until ctx ends, for whoever pauses or resumes the container.
func (m *Manager) SignalAll(ctx context.Context, id string, sig unix.Signal) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	return c.signalAll(ctx, sig)
}

// Signal sends a signal to a process; SIGKILL to the first one ends all of the
// container.
func (m *Manager) Signal(id, exec string, sig unix.Signal) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	return c.signal(exec, sig)
}

// Wait returns the exit status of a process once it has ended. Any number of
// callers may wait.
func (m *Manager) Wait(ctx context.Context, id, exec string) (int, error) {
	p, err := m.process(id, exec)
	if err != nil {
		return 0, err
	}
	status, err := p.wait(ctx)
	if err == nil {
		p.told.Store(true)
	}
	return status, err
}

// Remove takes down a container that has stopped. It waits for its last
// processes until ctx ends.
func (m *Manager) Remove(ctx context.Context, id string) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	if err := c.remove(ctx, m.dirs); err != nil {
		return err
	}
	m.forget(id)
	return nil
}

// ReadStdout reads from the output, or the terminal, of a process: at least one
// byte, or io.EOF after the last.
func (m *Manager) ReadStdout(ctx context.Context, id, exec string, buf []byte) (int, error) {
	p, err := m.process(id, exec)
	if err != nil {
		return 0, err
	}
	return p.stdout.Read(ctx, buf)
}

// ReadStderr is ReadStdout for the error output, which a process with a
// terminal does not have.
func (m *Manager) ReadStderr(ctx context.Context, id, exec string, buf []byte) (int, error) {
	p, err := m.process(id, exec)
	if err != nil {
		return 0, err
	}
	return p.stderr.Read(ctx, buf)
}

// WriteStdin waits until the process has taken data.
func (m *Manager) WriteStdin(ctx context.Context, id, exec string, data []byte) (int, error) {
	p, err := m.process(id, exec)
	if err != nil {
		return 0, err
	}
	return p.stdin.Write(ctx, data)
}

// CloseStdin ends the input of a process.
func (m *Manager) CloseStdin(id, exec string) error {
	p, err := m.process(id, exec)
	if err != nil {
		return err
	}
	return p.closeStdin()
}

// Stream returns the stream that a host asks for by a connection of its own.
func (m *Manager) Stream(h streamwire.Hello) (*stream.Stream, error) {
	p, err := m.process(h.Container, h.Exec)
	if err != nil {
		return nil, err
	}
	return p.stream(h.Stream)
}

// Root opens the root directory of a container as its processes see it, with all
// that is mounted there. The caller closes it.
func (m *Manager) Root(id string) (*os.File, error) {
	c, err := m.get(id)
	if err != nil {
		return nil, err
	}
	return c.root()
}

// Pause stops every process of a container where it is. It waits, until ctx
// ends, for execs that are being started.
func (m *Manager) Pause(ctx context.Context, id string) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	return c.pause(ctx)
}

// Resume lets the processes of a paused container go on.
func (m *Manager) Resume(ctx context.Context, id string) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	return c.resume(ctx)
}

// Update changes those limits of a container that are set in r.
func (m *Manager) Update(ctx context.Context, id string, r *pb.LinuxResources) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	return c.update(ctx, r)
}

// Stats returns what a container has used, until it is removed.
func (m *Manager) Stats(id string) (*pb.StatsContainerResponse, error) {
	c, err := m.get(id)
	if err != nil {
		return nil, err
	}
	return c.stats()
}

// NextOOM waits for the next container of which the kernel killed a process for
// want of memory, and returns its id. Each is returned once for all that
// happened since it was returned before. A later call takes the place of an
// earlier one, which fails with errdefs.ErrAborted.
func (m *Manager) NextOOM(ctx context.Context) (string, error) { return m.ooms.next(ctx) }

// Resize sets the size of the terminal of a process.
func (m *Manager) Resize(id, exec string, rows, columns uint16) error {
	p, err := m.process(id, exec)
	if err != nil {
		return err
	}
	return p.resize(rows, columns)
}

// Len is how many containers there are, in whichever state.
func (m *Manager) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.containers)
}

func (m *Manager) reserve(id string) (*Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, taken := m.containers[id]; taken {
		return nil, fmt.Errorf("container %s, which is %s: %w", id, c.State(), errdefs.ErrAlreadyExists)
	}
	c := newContainer(id, m.ooms)
	c.huge = m.huge
	m.containers[id] = c
	return c, nil
}

func (m *Manager) forget(id string) {
	m.mu.Lock()
	delete(m.containers, id)
	m.mu.Unlock()
	if m.gone != nil {
		m.gone(id)
	}
}

func (m *Manager) get(id string) (*Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, known := m.containers[id]
	if !known {
		return nil, fmt.Errorf("container %.140q: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

func (m *Manager) process(id, exec string) (*process, error) {
	c, err := m.get(id)
	if err != nil {
		return nil, err
	}
	return c.process(exec)
}
