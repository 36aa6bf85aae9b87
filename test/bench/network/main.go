// Network measures what a pod's network carries: the throughput of TCP between the
// pod and its node, both ways, and the time of a round trip. The pod is a virtual
// machine, by each model of configuration.toml, and beside it a network namespace
// with the same veth and no virtual machine, which is what a container of runc has.
// It is a part of `make bench`.
//
// It reports and asserts nothing. What is compared is measured in turn, so that the
// ratios mean something on a busy machine too.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/bench/machine"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/cni"
)

// Deadlines, with room for emulation on a busy machine.
const (
	boot = 2 * time.Minute
	step = time.Minute
)

// network is the pods' one. Where its tools lie in a container, and at which port
// and address the node serves.
var network = cni.Network{Bridge: "pods", MTU: 1500, Default: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.8.0/24")}}

const (
	toolsAt = "/iperf3"
	gateway = "10.88.8.1"
	port    = "5201"
)

type options struct {
	out     string
	runs    int
	seconds int // of one measurement of throughput
	pings   int // of one measurement of latency
	models  string
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	var o options
	flag.StringVar(&o.out, "out", ".build/bench", "folder for network.json and network.md")
	flag.IntVar(&o.runs, "runs", 3, "runs of each measurement, at least 1")
	flag.IntVar(&o.seconds, "seconds", 3, "of one measurement of throughput, at least 1")
	flag.IntVar(&o.pings, "pings", 50, "round trips of one measurement of latency, at least 1")
	flag.StringVar(&o.models, "models", "tap macvtap", "values of network.model to measure, with blanks between them")
	flag.Parse()
	if flag.NArg() > 0 || o.runs < 1 || o.seconds < 1 || o.pings < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := measure(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "network:", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, o options) (err error) {
	tree, err := harness.FindTree()
	if err != nil {
		return err
	}
	tools, archive := tree.Tool("iperf3", "root"), tree.Build("images", "one.tar")
	if err := errors.Join(
		harness.Need("bench, or run test/setup/tools.sh iperf3", tools),
		harness.Need("guest-image images", tree.Shim(), tree.Kernel(), tree.Initrd(), archive),
	); err != nil {
		return err
	}
	dir, err := tree.MakeRun("network")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	node, err := cni.NewNode(tree, dir)
	if err != nil {
		return err
	}
	defer node.Close()
	c, err := harness.Start(ctx, tree, harness.Options{LogLevel: "warn"})
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), step)
		defer cancel()
		err = errors.Join(err, c.RemoveContainers(stopping), c.Stop(stopping))
	}()
	names, err := c.Import(ctx, archive, harness.Snapshotter)
	if err != nil {
		return err
	}
	b := &bench{options: o, tree: tree, c: c, node: node, tools: tools, dir: dir, image: names[0]}
	return b.run(ctx)
}

// bench is one run of everything.
type bench struct {
	options
	tree  harness.Tree
	c     *harness.Containerd
	node  *cni.Node
	tools string // on the host
	dir   string
	image string
}

// place is where one end of a measurement runs.
type place struct {
	name  string
	tools string // where the tools are
	// command makes a command of a program among the tools.
	command func(ctx context.Context, args ...string) *exec.Cmd
	// do runs f in the namespace that the command must start in.
	do func(f func() error) error
}

func (b *bench) run(ctx context.Context) (err error) {
	bare, err := b.pod(ctx, "veth")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.Close(context.WithoutCancel(ctx))) }()
	places := []place{{"a veth without a virtual machine", b.tools, b.onHost, bare.Do}}
	for _, model := range strings.Fields(b.models) {
		p, end, err := b.guest(ctx, model)
		if err != nil {
			return err
		}
		defer end()
		places = append(places, p)
	}
	stop, err := b.serve(ctx)
	if err != nil {
		return err
	}
	defer stop()

	report := figures.Report{
		Title: "The network of a pod",
		Host: fmt.Sprintf("%s, %d CPUs, MTU %d. What is compared was measured in turn, and a ratio is the median of those of the pairs.",
			accelerator(b.c), runtime.NumCPU(), network.MTU),
		Machine: machine.Facts(ctx, b.tree),
	}
	sent := report.Table("TCP from the pod to the node", "Mbit/s").Draw(figures.Bars, "tcp-sent", "")
	received := report.Table("TCP from the node to the pod", "Mbit/s").Draw(figures.Bars, "tcp-received", "")
	trip := report.Table("Round trip from the pod to the node, the mean of a run", "ms").Draw(figures.Bars, "round-trip", "")
	for run := range b.runs {
		fmt.Printf("run %d of %d …\n", run+1, b.runs)
		for i, p := range places {
			against := ""
			if i > 0 {
				against = places[0].name
			}
			for table, flag := range map[*figures.Table]string{sent: "", received: "--reverse"} {
				rate, err := b.throughput(ctx, p, flag)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				table.Row(p.name, against).Add(rate)
			}
			rtt, err := b.latency(ctx, p)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			trip.Row(p.name, against).Add(rtt)
		}
	}
	fmt.Printf("\n%s\n", report.Markdown())
	return report.Write(b.out, "network")
}

// accelerator is what runs the VMs, by a trace of one.
func accelerator(c *harness.Containerd) string {
	found, err := filepath.Glob(filepath.Join(c.TraceDir(), "*.json"))
	var trace struct{ Accelerator string }
	if err == nil && len(found) > 0 {
		var text []byte
		if text, err = os.ReadFile(found[0]); err == nil {
			err = json.Unmarshal(text, &trace)
		}
	}
	if err != nil || trace.Accelerator == "" {
		return "an unknown accelerator"
	}
	return trace.Accelerator
}

func (b *bench) pod(ctx context.Context, id string) (*cni.Pod, error) {
	p, err := b.node.NewPod(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	if _, err := p.Add(ctx, "eth0", network, nil); err != nil {
		return nil, errors.Join(err, p.Close(ctx))
	}
	return p, nil
}

func (b *bench) onHost(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(b.tools, args[0]), args[1:]...)
}

// guest starts a pod in a VM, to be ended.
func (b *bench) guest(ctx context.Context, model string) (p place, end func(), err error) {
	pod, err := b.pod(ctx, model)
	if err != nil {
		return place{}, nil, err
	}
	config := filepath.Join(b.dir, model+".toml")
	if err := b.c.ShimConfig().Set("network", "model", model).Write(config); err != nil {
		return place{}, nil, err
	}
	starting, cancel := context.WithTimeout(ctx, boot)
	defer cancel()
	run := b.c.Ctr(starting, "run", "--detach", "--runtime", harness.Runtime, "--runtime-config-path", config, "--snapshotter", harness.Snapshotter,
		"--with-ns", "network:"+pod.Path(), "--mount", "type=bind,src="+b.tools+",dst="+toolsAt+",options=rbind:ro",
		b.image, model, "sleep", "100000")
	if out, err := run.CombinedOutput(); err != nil {
		return place{}, nil, errors.Join(fmt.Errorf("start a pod by %s: %w: %s", model, err, out), pod.Close(context.WithoutCancel(ctx)))
	}
	serial := 0
	in := func(ctx context.Context, args ...string) *exec.Cmd {
		serial++
		return b.c.Ctr(ctx, append([]string{"task", "exec", "--exec-id", "e" + strconv.Itoa(serial), model, filepath.Join(toolsAt, args[0])}, args[1:]...)...)
	}
	return place{"a virtual machine, by " + model, toolsAt, in, func(f func() error) error { return f() }}, func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), step)
		defer cancel()
		_ = b.c.RemoveContainers(ending) // as measure does, which says what is wrong
		_ = pod.Close(ending)
	}, nil
}

// iperf3 is the program with its own libraries.
func iperf3(at string, args ...string) []string {
	return append([]string{"ld-linux-x86-64.so.2", "--library-path", at, filepath.Join(at, "iperf3")}, args...)
}

// serve starts the server on the node.
func (b *bench) serve(ctx context.Context) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := b.onHost(ctx, iperf3(b.tools, "--server", "--bind", gateway, "--port", port, "--forceflush")...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = b.node.Do(cmd.Start)
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("start iperf3: %w", err)
	}
	// It says that it listens.
	first := make([]byte, 64)
	if _, err := out.Read(first); err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("iperf3 does not serve: %w", err), cmd.Wait())
	}
	go func() { _, _ = (&bytes.Buffer{}).ReadFrom(out) }() // ends with it
	return func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}, nil
}

// output runs a program in a place.
func (p place) output(ctx context.Context, args ...string) ([]byte, error) {
	cmd := p.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := p.do(cmd.Run); err != nil {
		return nil, fmt.Errorf("%s: %w: %.500s%.500s", strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.Bytes(), nil
}

// throughput is what the receiver of a stream got, in Mbit/s.
func (b *bench) throughput(ctx context.Context, p place, flag string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, step+time.Duration(b.seconds)*time.Second)
	defer cancel()
	args := []string{"--client", gateway, "--port", port, "--time", strconv.Itoa(b.seconds), "--json"}
	if flag != "" {
		args = append(args, flag)
	}
	out, err := p.output(ctx, iperf3(p.tools, args...)...)
	if err != nil {
		return 0, err
	}
	var result struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &result); err != nil || result.End.Received.Bits == 0 {
		return 0, fmt.Errorf("iperf3 says %.300q: %w", out, err)
	}
	return result.End.Received.Bits / 1e6, nil
}

// mean is the second figure of ping's last line: least, mean and most.
var mean = regexp.MustCompile(`= [0-9.]+/([0-9.]+)/[0-9.]+ ms`)

// latency is the mean time of a round trip, in milliseconds.
func (b *bench) latency(ctx context.Context, p place) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	out, err := p.output(ctx, "busybox", "ping", "-c", strconv.Itoa(b.pings), "-i", "0.02", "-q", gateway)
	if err != nil {
		return 0, err
	}
	found := mean.FindSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("ping says %.300q", out)
	}
	return strconv.ParseFloat(string(found[1]), 64)
}
