// Demo is what `make run` starts: it brings up a private containerd, imports a
// real image, runs it in a VM with ctr, and says what happened. It stops what it
// started, also after Ctrl-C.
//
// It takes everything from the build folder, changes nothing outside of it, and
// keeps the imported image for the next run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness"
)

const stopTime = 30 * time.Second // for everything that is undone at the end

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	// A reader that goes away, such as head, must not keep us from stopping
	// what we have started.
	signal.Ignore(syscall.SIGPIPE)
	d := demo{out: newScreen(os.Stdout)}
	release := flag.String("containerd", harness.Releases[0], "release of containerd to run")
	flag.StringVar(&d.archive, "image", "first-light", "archive in .build/images to run")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: demo [flags] [command of the container...]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	d.command = flag.Args()

	code, err := d.run(ctx, *release)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "interrupted; everything is stopped")
		code = 130
		if err != nil && !errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, err)
		}
	case err != nil:
		fmt.Fprintf(os.Stderr, "\nerror: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

type demo struct {
	out     *screen
	archive string
	command []string
}

// run is the demo from the first line to the last. It returns the container's
// exit code.
func (d *demo) run(ctx context.Context, release string) (code int, err error) {
	tree, err := harness.FindTree()
	if err != nil {
		return 0, err
	}
	archive := tree.Build("images", d.archive+".tar")
	if err := harness.Need("run", tree.Shim(), tree.Kernel(), tree.Initrd(), archive); err != nil {
		return 0, err
	}

	var c *harness.Containerd
	err = d.out.step(ctx, "start a private containerd "+release, func() (err error) {
		c, err = harness.Start(ctx, tree, harness.Options{Release: release, Name: "demo-" + release})
		return err
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.stop(ctx, c)) }()

	var image string
	err = d.out.step(ctx, "import "+d.archive+" into its EROFS snapshotter", func() error {
		if err := c.RemoveContainers(ctx); err != nil { // of a run that was killed
			return err
		}
		names, err := c.Import(ctx, archive, harness.Snapshotter)
		if err == nil && len(names) != 1 {
			err = fmt.Errorf("%s has the images %q, want one", archive, names)
		}
		if err == nil {
			image = names[0]
		}
		return err
	})
	if err != nil {
		return 0, err
	}

	run, err := d.ctrRun(ctx, tree, c, image)
	if err != nil {
		return 0, fmt.Errorf("%w\nThe end of containerd's log, the shim's included:\n%s", err, c.LogTail(25))
	}
	// When nothing is left the shim has written its last phase.
	if run.left, err = d.leftovers(ctx, c); err != nil {
		return 0, err
	}
	if run.trace, err = c.Trace(run.id); err != nil {
		return 0, err
	}
	return run.code, run.report(d.out)
}

// outcome is what the report is made of.
type outcome struct {
	id          string
	image       string
	code        int
	took        time.Duration
	hostKernel  string
	guestKernel string
	tree        string // removed from the front of paths
	trace       *harness.Trace
	left        []string
}

// ctrRun runs the container in the foreground and shows its output.
func (d *demo) ctrRun(ctx context.Context, tree harness.Tree, c *harness.Containerd, image string) (*outcome, error) {
	run := &outcome{id: fmt.Sprintf("demo-%d", os.Getpid()), image: image, tree: tree.Root}
	args := []string{"run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", c.ShimConfigPath(),
		"--snapshotter", harness.Snapshotter, image, run.id}
	args = append(args, d.command...)
	d.out.heading("$ ctr " + strings.ReplaceAll(strings.Join(args, " "), tree.Root+"/", ""))

	var kept tail
	cmd := c.Ctr(ctx, args...)
	lines := d.out.indented("  | ")
	cmd.Stdout = io.MultiWriter(lines, &kept)
	cmd.Stderr = lines
	// ctr ends by a signal until there is a container; then it passes the signal
	// on to that, which may ignore it. Ending the container ends ctr too.
	cmd.Cancel = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		return c.RemoveContainers(ending)
	}
	begun := time.Now()
	err := cmd.Run()
	run.took = time.Since(begun)
	lines.flush()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		run.code, err = exit.ExitCode(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("ctr run: %w", err)
	}
	if run.code != 0 && !c.HasTrace(run.id) {
		return nil, fmt.Errorf("ctr run failed with code %d before there was a VM", run.code)
	}
	run.guestKernel = kernelIn(kept.String())
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return nil, err
	}
	run.hostKernel = unix.ByteSliceToString(host.Release[:])
	return run, nil
}

// kernelLine is how the image's program says what `uname -r` printed.
var kernelLine = regexp.MustCompile(`(?mi)^.*\bkernel\b[^0-9\n]*([0-9]+\.[0-9]+[^\s,]*)`)

func kernelIn(output string) string {
	if found := kernelLine.FindStringSubmatch(output); found != nil {
		return found[1]
	}
	return "not said by the container"
}

// tail keeps the beginning of a stream, enough to find the kernel in.
type tail struct{ strings.Builder }

func (t *tail) Write(p []byte) (int, error) {
	const most = 64 << 10
	if room := most - t.Len(); room > 0 {
		t.Builder.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (d *demo) leftovers(ctx context.Context, c *harness.Containerd) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	return c.Leftovers(ctx)
}

// stop ends containerd and, after an interruption, what still runs under it.
func (d *demo) stop(ctx context.Context, c *harness.Containerd) error {
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	return d.out.step(ending, "stop containerd", func() error {
		// A create that was interrupted is undone by its shim, in its own time.
		err := c.RemoveContainers(ending)
		undone, cancel := context.WithTimeout(ending, stopTime/2)
		defer cancel()
		_, waitErr := c.WaitProcesses(undone)
		return errors.Join(err, waitErr, c.Stop(ending))
	})
}

// short removes the tree's folder from a path.
func (o *outcome) short(path string) string {
	if rel, err := filepath.Rel(o.tree, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}
