// Pods measures pods as a kubelet makes them: how long one takes until all of its
// containers run, how long one more container takes, and what idle pods cost their
// node, one, ten and twenty of them. It is a part of `make bench`.
//
// It reports and asserts nothing. What is compared is measured in turn, so that the
// ratios mean something on a busy machine too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/bench/machine"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/cni"
	"github.com/erofsvm/erofsvm/test/image"
)

const (
	// step is for one pod or container to start or to end, with room for emulation.
	step = 3 * time.Minute
	// settle is how long pods are left alone before what they cost is looked at: a
	// guest goes on for a moment after its container has started.
	settle = 3 * time.Second
	// look is how often the CRI is asked for what has no event.
	look = 20 * time.Millisecond
)

// The runtime handlers: the two ways into a pod.
var handlers = []string{"podsandbox", "sandbox-api"}

type options struct {
	out    string
	runs   int
	counts []int // of containers, and of pods
	pods   []int
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	var o options
	flag.StringVar(&o.out, "out", ".build/bench", "folder for pods.json and pods.md")
	flag.IntVar(&o.runs, "runs", 3, "runs of each measurement of time, 0 for what pods cost alone")
	containers := flag.String("containers", "1,5", "how many containers pods have whose start is measured")
	pods := flag.String("pods", "1,10,20", "how many idle pods to have at once, to see what one more costs")
	flag.Parse()
	var err [2]error
	o.counts, err[0] = parseCounts("containers", *containers)
	o.pods, err[1] = parseCounts("pods", *pods)
	if err := errors.Join(err[:]...); err != nil || o.runs < 0 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "pods:", err)
		flag.Usage()
		os.Exit(2)
	}
	if err := measure(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "pods:", err)
		os.Exit(1)
	}
}

// parseCounts reads ascending numbers with commas between them.
func parseCounts(name, text string) ([]int, error) {
	var counts []int
	for field := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 || len(counts) > 0 && n <= counts[len(counts)-1] {
			return nil, fmt.Errorf("-%s %q: want ascending numbers, such as 1,5,10", name, text)
		}
		counts = append(counts, n)
	}
	return counts, nil
}

func measure(ctx context.Context, o options) (err error) {
	tree, err := harness.FindTree()
	if err != nil {
		return err
	}
	if err := harness.Need("guest-image images", tree.Shim(), tree.Kernel(), tree.Initrd(), tree.Build("images", "one.tar")); err != nil {
		return err
	}
	dir, err := tree.MakeRun("pods")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	node, err := cni.NewNode(tree, dir)
	if err != nil {
		return err
	}
	defer node.Close()
	network, err := node.List(cni.Network{Bridge: "pods", MTU: 1450, Default: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.7.0/24")}})
	if err != nil {
		return err
	}
	own := func(c harness.ShimConfig) {
		// Many guests, all emulated, can make the next one slow to boot.
		c.Set("host", "cgroup", "pod").Set("deadlines", "agent", step.String())
	}
	c, err := harness.Start(ctx, tree, harness.Options{LogLevel: "warn", Enter: node.Do, CRI: &harness.CRI{
		Pause: image.Pause, Plugins: node.Plugins(), Network: network,
		Handlers: map[string]harness.Handler{
			handlers[0]: {Sandboxer: "podsandbox", ShimConfig: own},
			handlers[1]: {Sandboxer: "shim", ShimConfig: own},
		},
	}})
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), step)
		defer cancel()
		err = errors.Join(err, c.RemoveContainers(stopping), c.Stop(stopping))
	}()
	for _, archive := range []string{"one", "pause"} {
		if _, err := c.Import(ctx, tree.Build("images", archive+".tar"), harness.Snapshotter); err != nil {
			return err
		}
	}
	conn, err := grpc.NewClient("unix://"+c.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	b := &bench{options: o, tree: tree, c: c, dir: dir, RuntimeServiceClient: cri.NewRuntimeServiceClient(conn)}
	if err := b.awaitImages(ctx, cri.NewImageServiceClient(conn)); err != nil {
		return err
	}
	return b.run(ctx)
}

// bench is one run of everything.
type bench struct {
	options
	cri.RuntimeServiceClient
	tree   harness.Tree
	c      *harness.Containerd
	dir    string
	serial int
	report figures.Report
}

// awaitImages waits until the CRI has heard of images that were imported.
func (b *bench) awaitImages(ctx context.Context, images cri.ImageServiceClient) error {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for _, name := range []string{image.One, image.Pause} {
		for {
			s, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
			if err != nil {
				return fmt.Errorf("image %s: %w", name, err)
			}
			if s.GetImage() != nil {
				break
			}
			<-tick.C
		}
	}
	return nil
}

func (b *bench) run(ctx context.Context) error {
	// The first one finds out which accelerator there is, and fills the page cache.
	fmt.Println("warming up")
	p, err := b.pod(ctx, handlers[0])
	if err != nil {
		return err
	}
	if err := errors.Join(p.container(ctx), p.remove(ctx)); err != nil {
		return err
	}
	trace, err := b.c.Trace(p.id)
	if err != nil {
		return err
	}
	b.report = figures.Report{
		Title: "Pods",
		Host: fmt.Sprintf("%s, %d CPUs. Images are there, containers sleep, the network is that of CNI's bridge. "+
			"What is compared was measured in turn, and a ratio is the median of those of the pairs.", trace.Accelerator, runtime.NumCPU()),
		Machine: machine.Facts(ctx, b.tree),
	}
	if b.runs > 0 {
		if err := b.starts(ctx); err != nil {
			return err
		}
	}
	if err := b.density(ctx); err != nil {
		return err
	}
	fmt.Printf("\n%s\n", b.report.Markdown())
	return b.report.Write(b.out, "pods")
}
