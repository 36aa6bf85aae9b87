// Command conformance runs suites that others wrote against the built shim: that
// of github.com/containerd/shimtest, and the client tests of each release of
// containerd. It prints what it runs, and ends with a line that counts what
// passed, failed and was skipped; skips.md has the reason of each skip.
//
//	conformance [-short | -run regexp [-timeout d]] shimtest
//	conformance [-short | -run regexp [-timeout d]] containerd [release...]
//	conformance benchmarks
//
// The last one is shimtest's benchmarks, and with the shim of runc beside ours.
//
// Under the name containerd it is something else: see wrapper.go.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/conformance/place"
	"github.com/erofsvm/erofsvm/test/conformance/tally"
	"github.com/erofsvm/erofsvm/test/harness"
)

//go:embed skips.md
var skips string

func main() {
	place.Main()
	if filepath.Base(os.Args[0]) == wrapped {
		fmt.Fprintln(os.Stderr, asContainerd(os.Args))
		os.Exit(1)
	}
	if len(os.Args) > 1 && os.Args[1] == insideArg {
		os.Exit(inside(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	pattern string        // of tests, "" for all
	timeout time.Duration // of those that match it
	short   bool          // what fits into every change's check
}

// errVerdict is a run that went wrong, which has been said already.
var errVerdict = errors.New("not as it should be")

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	flags.StringVar(&o.pattern, "run", "", "only the tests that match, as go test has it")
	flags.DurationVar(&o.timeout, "timeout", 30*time.Minute, "with -run, how long the tests may take; those of stress take all of it")
	flags.BoolVar(&o.short, "short", false, "only what fits into the check of every change")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("not root: containerd and its shims need to be")
	}
	tree, err := harness.FindTree()
	if err != nil {
		return err
	}
	if err := harness.Need("tools", tree.QEMU(), tree.MkfsErofs()); err != nil {
		return err
	}
	if err := harness.Need("guest-image images", tree.Shim(), tree.Kernel(), tree.Initrd(), tree.Build("images", "one.tar")); err != nil {
		return err
	}
	lists, err := tally.ParseLists(skips)
	if err != nil {
		return fmt.Errorf("skips.md: %w", err)
	}
	lock, err := only(tree.Build("conformance"))
	if err != nil {
		return err
	}
	defer lock.Close()
	b := &bench{ctx: ctx, tree: tree, options: o, lists: lists, out: out}
	switch name := flags.Arg(0); name {
	case "shimtest":
		return b.shimtest()
	case "containerd":
		return b.releases(flags.Args()[1:])
	case "benchmarks":
		return b.benchmarks()
	default:
		return fmt.Errorf("%q is no suite: shimtest, benchmarks, or containerd with releases", name)
	}
}

// only makes a folder this process's own until the file is closed.
func only(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("%s is in use by another run: %w", dir, err)
	}
	return lock, nil
}

// bench is what the suites have in common.
type bench struct {
	ctx     context.Context
	tree    harness.Tree
	options options
	lists   map[string]tally.List

	mu  sync.Mutex // for writing to out
	out io.Writer
}

// releases runs the client tests of each release, the newest first.
func (b *bench) releases(wanted []string) error {
	if len(wanted) == 0 {
		wanted = harness.Releases
		if b.options.short {
			wanted = wanted[:1]
		}
	}
	var errs []error
	for _, release := range wanted {
		if !slices.Contains(harness.Releases, release) {
			return fmt.Errorf("containerd %s is none of %v", release, harness.Releases)
		}
		errs = append(errs, b.clientTests(release))
	}
	return errors.Join(errs...)
}
