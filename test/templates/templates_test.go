package templates

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/cni"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

func TestMain(m *testing.M) { e2etest.Main(m) }

// TestTemplates is one story, since a template takes a cold start and a build: the
// first pod boots, those after it go on from what was built behind it, and one whose
// template is spoilt boots again.
func TestTemplates(t *testing.T) {
	bed := e2etest.Own(t, harness.Options{})
	config := filepath.Join(bed.Dir(), "templates.toml")
	if err := bed.ShimConfig().Set("hypervisor", "templates", "on").Write(config); err != nil {
		t.Fatal(err)
	}
	w := &world{Bed: bed, config: config, image: bed.Image(t, "two", harness.Snapshotter), netns: map[string]string{}}
	cold := w.run(t, "cold")
	if cold.trace.Template != "" {
		t.Fatalf("the first VM goes on from template %s", cold.trace.Template)
	}
	w.settle(t)
	key := w.template(t)

	warm := w.run(t, "warm")
	t.Run("the same as cold", func(t *testing.T) {
		if warm.trace.Template != key {
			t.Errorf("the second VM went on from template %q, want %s", warm.trace.Template, key)
		}
		if warm.said("kernel") != cold.said("kernel") || warm.said("words") != cold.said("words") || warm.code != cold.code {
			t.Errorf("cold: %+v\nfrom the template: %+v", cold, warm)
		}
	})
	t.Run("faster", func(t *testing.T) {
		a, b := agentAfter(t, cold), agentAfter(t, warm)
		t.Logf("exec of QEMU to the agent: cold %v, from the template %v; ctr run: %v and %v", a, b, cold.took, warm.took)
		if b > a/2 {
			t.Errorf("exec of QEMU to the agent: cold %v, from the template %v", a, b)
		}
	})
	t.Run("with its disks before its agent", func(t *testing.T) {
		attach, plugged := warm.trace.Phase("attach")
		agent, answers := warm.trace.Phase("guest boot")
		if !plugged || !answers || attach.Began()+attach.Took() > agent.Began()+agent.Took() {
			t.Errorf("disks: %+v, the guest: %+v", attach, agent)
		}
	})
	t.Run("twins are none", func(t *testing.T) {
		macs := w.connect(t, "twin-a", "twin-b")
		twins := w.atOnce(t, "twin-a", "twin-b")
		for i, want := range macs {
			if got := twins[i].said("mac"); got != want || macs[0] == macs[1] {
				t.Errorf("the interface of %s has the MAC %q, want %q", twins[i].trace.ID, got, want)
			}
		}
		twins = append(twins, warm)
		for _, what := range []string{"boot_id", "uuid", "urandom", "hostname"} {
			if a, b, c := twins[0].said(what), twins[1].said(what), twins[2].said(what); a == "" || a == b || b == c || a == c {
				t.Errorf("%s: %q, %q and %q", what, a, b, c)
			}
		}
		for i, one := range twins {
			if one.trace.Template != key {
				t.Errorf("%s boots", one.trace.ID)
			}
			if other := twins[(i+1)%3].trace.Sample; one.trace.Sample == "" || one.trace.Sample == other {
				t.Errorf("what the agents draw: %q and %q", one.trace.Sample, other)
			}
			if d := one.clock; d < -time.Second || d > time.Second {
				t.Errorf("the clock of %s is %v off", one.trace.ID, d)
			}
		}
	})
	t.Run("a spoilt template does no harm", func(t *testing.T) {
		spoil(t, filepath.Join(w.store(), key, "state"))
		spoilt := w.run(t, "spoilt")
		if spoilt.trace.Template != "" || spoilt.code != cold.code || spoilt.said("words") != cold.said("words") {
			t.Errorf("%+v", spoilt)
		}
		if text, err := os.ReadFile(filepath.Join(w.store(), key+".failures")); len(text) != 1 {
			t.Errorf("%d failures are counted, %v", len(text), err)
		}
	})
}

// world runs containers with one configuration.
type world struct {
	*e2etest.Bed
	config, image string
	netns         map[string]string // of those containers that CNI has connected, by their names
}

// connect gives containers to come a network, and returns the MACs that CNI chose.
func (w *world) connect(t *testing.T, ids ...string) (macs []string) {
	t.Helper()
	node, err := cni.NewNode(w.Tree, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	for _, id := range ids {
		pod, err := node.NewPod(id)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), e2etest.Step)
			defer cancel()
			if err := pod.Close(ctx); err != nil {
				t.Error(err)
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), e2etest.Step)
		eth0, err := pod.Add(ctx, "eth0", cni.Network{Bridge: "pods", MTU: 1500, Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.11.0/24")}}, nil)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		w.netns[id] = pod.Path()
		macs = append(macs, eth0.MAC)
	}
	return macs
}

func (w *world) store() string { return filepath.Join(w.CacheDir(), "templates") }

// settle waits until what goes on behind the containers is done.
func (w *world) settle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	if left, err := w.WaitProcesses(ctx); err != nil || len(left) > 0 {
		t.Fatalf("processes %v are left, %v", left, err)
	}
}

// template is the one template that there is.
func (w *world) template(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(w.store(), "*", "template.json"))
	if err != nil || len(found) != 1 {
		errs, _ := filepath.Glob(filepath.Join(w.store(), "*.error"))
		for _, path := range errs {
			text, _ := os.ReadFile(path)
			t.Logf("%s: %s", path, text)
		}
		t.Fatalf("templates: %v, %v\n%s", found, err, w.LogTail(40))
	}
	return filepath.Base(filepath.Dir(found[0]))
}

// result is what a container said, and what the shim wrote of its VM.
type result struct {
	lines map[string]string
	code  int
	took  time.Duration
	clock time.Duration // of the guest, less that of the host
	trace *harness.Trace
}

func (r *result) said(what string) string { return r.lines[what] }

// script says a few things that are those of a pod, each with its name.
const script = `echo words: and some output
echo kernel: $(uname -r)
echo boot_id: $(cat /proc/sys/kernel/random/boot_id)
echo uuid: $(cat /proc/sys/kernel/random/uuid)
echo urandom: $(head -c 16 /dev/urandom | od -An -tx1)
echo hostname: $(hostname)
echo mac: $(cat /sys/class/net/eth0/address 2>/dev/null)
echo now: $(date +%s)
exit 7`

func (w *world) run(t *testing.T, id string) *result {
	t.Helper()
	return w.atOnce(t, id)[0]
}

// atOnce runs containers at the same time.
func (w *world) atOnce(t *testing.T, ids ...string) []*result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*e2etest.Boot)
	defer cancel()
	results, errs := make([]*result, len(ids)), make([]error, len(ids))
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() { results[i], errs[i] = w.one(ctx, id) })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("%s: %v\n%s", ids[i], err, w.LogTail(40))
		}
	}
	return results
}

func (w *world) one(ctx context.Context, id string) (*result, error) {
	args := []string{"run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", w.config,
		"--snapshotter", harness.Snapshotter, "--hostname", "pod-" + id}
	if path, ok := w.netns[id]; ok {
		args = append(args, "--with-ns", "network:"+path)
	}
	cmd := w.Ctr(ctx, append(args, w.image, id, "sh", "-c", script)...)
	began := time.Now()
	out, err := cmd.Output()
	r := &result{lines: map[string]string{}, took: time.Since(began), code: cmd.ProcessState.ExitCode()}
	if r.code != 7 {
		return nil, fmt.Errorf("exit status %d, %w: %s", r.code, err, out)
	}
	for line := range strings.Lines(string(out)) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), ": ")
		r.lines[name] = text
	}
	if r.trace, err = w.Trace(id); err != nil {
		return nil, err
	}
	now, err := strconv.ParseInt(r.lines["now"], 10, 64)
	if err != nil {
		return nil, err
	}
	// It was said at some time between: inside of that it is right.
	if at := time.Unix(now, 0); at.Before(began.Truncate(time.Second)) {
		r.clock = at.Sub(began.Truncate(time.Second))
	} else if end := began.Add(r.took); at.After(end) {
		r.clock = at.Sub(end)
	}
	return r, nil
}

// agentAfter is how long it took from the exec of QEMU until the agent answered.
func agentAfter(t *testing.T, r *result) time.Duration {
	t.Helper()
	phase, ok := r.trace.Phase("qemu exec to agent")
	if !ok {
		t.Fatalf("no such phase in the trace of %s", r.trace.ID)
	}
	return phase.Took()
}

// spoil overwrites all of a file with what is no VM.
func spoil(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // root may
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	junk := []byte(strings.Repeat("erofsvm ", 1<<17))
	for at := int64(0); at < info.Size(); at += int64(len(junk)) {
		if _, err := f.WriteAt(junk[:min(int64(len(junk)), info.Size()-at)], at); err != nil {
			t.Fatal(err)
		}
	}
}
