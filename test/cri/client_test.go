package cri

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/cni"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// look is how often the tests ask for what has no event.
const look = 100 * time.Millisecond

// runtime is a containerd as a kubelet sees it.
type runtime struct {
	bed  *e2etest.Bed
	node *cni.Node
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	ends   *ends
	close  func()
}

// ends are the containers that have ended, as the CRI's events tell.
type ends struct {
	mu   sync.Mutex
	told map[string]chan struct{} // by id; closed when it has ended
}

// of returns what is closed when a container, or a pod, has ended.
func (e *ends) of(id string) chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.told[id] == nil {
		e.told[id] = make(chan struct{})
	}
	return e.told[id]
}

// follow takes events until the stream ends.
func (e *ends) follow(stream grpc.ServerStreamingClient[cri.ContainerEventResponse]) {
	for {
		event, err := stream.Recv()
		if err != nil {
			return
		}
		if event.GetContainerEventType() != cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
			continue
		}
		ended := e.of(event.GetContainerId())
		select {
		case <-ended:
		default:
			close(ended)
		}
	}
}

// connect connects, again if it was connected. Whoever calls it calls close.
func (r *runtime) connect(t *testing.T) {
	t.Helper()
	if r.close != nil {
		r.close()
	}
	conn, err := grpc.NewClient("unix://"+r.bed.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.RuntimeServiceClient, r.images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	r.ends = &ends{told: map[string]chan struct{}{}}
	var following sync.WaitGroup
	r.close = func() {
		conn.Close()
		following.Wait()
	}
	stream, err := r.GetContainerEvents(context.WithoutCancel(t.Context()), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	following.Go(func() { r.ends.follow(stream) })
}

// step is a context for one request.
func step(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), e2etest.Step)
	t.Cleanup(cancel)
	return ctx
}

// until asks until done says so.
func until(t *testing.T, what string, done func() (bool, error)) {
	t.Helper()
	tick, deadline := time.NewTicker(look), time.After(e2etest.Step)
	defer tick.Stop()
	for {
		ok, err := done()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, e2etest.Step)
		}
	}
}

// awaitImages waits until the CRI has heard of images that were imported.
func (r *runtime) awaitImages(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		until(t, "image "+name, func() (bool, error) {
			s, err := r.images.ImageStatus(step(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
			return s.GetImage() != nil, err
		})
	}
}

// pod is a pod that runs.
type pod struct {
	*runtime
	id      string
	handler string
	config  *cri.PodSandboxConfig
	group   *harness.PodCgroup
}

var serial int

// pod runs a pod. What is left of it at the end of the test is removed.
func (r *runtime) pod(t *testing.T, handler string, change func(*cri.PodSandboxConfig)) *pod {
	t.Helper()
	serial++
	p := &pod{runtime: r, handler: handler, config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: fmt.Sprint("pod-", serial), Namespace: "tests", Uid: fmt.Sprint("uid-", serial)},
		Hostname:     "the-pod",
		LogDirectory: t.TempDir(),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"pods.example"}, Options: []string{"ndots:5"}},
		Linux: &cri.LinuxPodSandboxConfig{
			Sysctls: map[string]string{"kernel.shm_rmid_forced": "1"},
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_POD,
			}},
		},
	}}
	p.group = r.podGroup(t, p.config.Metadata.Uid)
	p.config.Linux.CgroupParent = p.group.Path
	if change != nil {
		change(p.config)
	}
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	began := time.Now()
	resp, err := r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("run pod: %v", err)
	}
	t.Logf("pod runs after %v", time.Since(began).Round(time.Millisecond))
	p.id = resp.GetPodSandboxId()
	t.Cleanup(func() { p.remove(t) })
	return p
}

// remove stops and removes the pod, and its containers with it, once.
func (p *pod) remove(t *testing.T) {
	t.Helper()
	if p.id == "" {
		return
	}
	if _, err := p.StopPodSandbox(step(t), &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stop pod: %v", err)
	}
	if _, err := p.RemovePodSandbox(step(t), &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("remove pod: %v", err)
	}
	p.id = ""
	p.ungrouped(t)
}

func (p *pod) state(t *testing.T) cri.PodSandboxState {
	t.Helper()
	s, err := p.PodSandboxStatus(step(t), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("status of the pod: %v", err)
	}
	return s.GetStatus().GetState()
}

// container is a container of a pod.
type container struct {
	*pod
	id, name, log string
}

// spec says what container to make. A container that shares the pids of its pod
// has Pid POD, as a kubelet says it.
type spec struct {
	name    string
	attempt uint32
	image   string
	script  string // for /bin/sh
	pid     cri.NamespaceMode
	change  func(*cri.ContainerConfig)
}

// create makes a container and does not start it.
func (p *pod) create(t *testing.T, s spec) (*container, error) {
	t.Helper()
	c := &container{pod: p, name: s.name, log: fmt.Sprintf("%s.%d.log", s.name, s.attempt)}
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: s.name, Attempt: s.attempt},
		Image:    &cri.ImageSpec{Image: s.image},
		Command:  []string{"/bin/sh", "-c", s.script},
		LogPath:  c.log,
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Network: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork(), Pid: s.pid,
			}},
		},
	}
	if s.change != nil {
		s.change(config)
	}
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	resp, err := p.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	c.id = resp.GetContainerId()
	return c, err
}

// start makes a container and starts it.
func (p *pod) start(t *testing.T, s spec) *container {
	t.Helper()
	began := time.Now()
	c, err := p.create(t, s)
	if err != nil {
		t.Fatalf("create %s: %v", s.name, err)
	}
	// The CRI starts the task, and the shim makes the container, with this call.
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	if _, err := p.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatalf("start %s: %v", s.name, err)
	}
	t.Logf("%s runs after %v", s.name, time.Since(began).Round(time.Millisecond))
	return c
}

func (c *container) status(t *testing.T) *cri.ContainerStatus {
	t.Helper()
	s, err := c.ContainerStatus(step(t), &cri.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("status of %s: %v", c.name, err)
	}
	return s.GetStatus()
}

// exit waits until the container has ended and returns its code.
func (c *container) exit(t *testing.T) int32 {
	t.Helper()
	select {
	case <-c.ends.of(c.id):
	case <-time.After(e2etest.Step):
		t.Fatalf("%s has not ended within %v", c.name, e2etest.Step)
	}
	s := c.status(t)
	if s.GetState() != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("%s has ended and is %v", c.name, s.GetState())
	}
	return s.GetExitCode()
}

// sh runs a script in the container, which must succeed, and returns its output.
func (c *container) sh(t *testing.T, script string) string {
	t.Helper()
	r, err := c.ExecSync(step(t), &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"/bin/sh", "-c", script}, Timeout: 20})
	if err != nil {
		t.Fatalf("exec in %s: %v", c.name, err)
	}
	if r.GetExitCode() != 0 || len(r.GetStderr()) > 0 {
		t.Errorf("%s: %q ends with %d: %s", c.name, script, r.GetExitCode(), r.GetStderr())
	}
	return string(r.GetStdout())
}

func (c *container) delete(t *testing.T) {
	t.Helper()
	if _, err := c.RemoveContainer(step(t), &cri.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Errorf("remove %s: %v", c.name, err)
	}
}

// logged waits until a log has a line with the text.
func (c *container) logged(t *testing.T, file, text string) {
	t.Helper()
	path := filepath.Join(c.config.GetLogDirectory(), file)
	until(t, fmt.Sprintf("%q in %s", text, file), func() (bool, error) {
		content, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return false, nil
		}
		return strings.Contains(string(content), " stdout F "+text+"\n"), err
	})
}
