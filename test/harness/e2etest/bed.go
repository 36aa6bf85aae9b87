// Package e2etest lets tests use the harness: one containerd a release shared
// by the tests of a binary, images imported once, containers made and watched
// through containerd's client, and after each test the question whether
// anything is left.
//
// Its functions are for the goroutine of a test, because they end it on an
// error. Tests that use it do not run in parallel: what a container leaves
// behind can only be seen while no other one runs.
package e2etest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/need"
)

// Deadlines, with room for emulation on a busy machine.
const (
	Boot  = 90 * time.Second // from asking for a container until it is created
	Step  = 30 * time.Second // one request to a container that runs
	After = 15 * time.Second // from the end of a container until all of it is gone
)

// shared holds the containerds of this test binary; Main ends them.
var shared struct {
	sync.Mutex
	beds map[string]*Bed
}

// Bed is a running containerd with what the tests have imported into it.
type Bed struct {
	*harness.Containerd
	Tree     harness.Tree
	imported map[string]string // archive and snapshotter → image
	known    []string          // what an earlier test was already blamed for
}

// Main runs the tests of a package, stops what they shared, and fails if
// anything of it, or a goroutine, is left. Call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	shared.Lock()
	for _, bed := range shared.beds {
		ctx, cancel := context.WithTimeout(context.Background(), Step)
		if err := bed.Stop(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "stop containerd %s: %v\n", bed.Release(), err)
			code = 1
		}
		cancel()
	}
	shared.Unlock()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// Release returns the shared containerd of one release. When the test is over,
// nothing of its containers may be left in it.
func Release(t *testing.T, release string) *Bed {
	t.Helper()
	tree := needBuild(t, release)
	shared.Lock()
	defer shared.Unlock()
	bed := shared.beds[release]
	if bed == nil {
		bed = start(t, tree, harness.Options{Release: release, LogLevel: "debug"})
		if shared.beds == nil {
			shared.beds = make(map[string]*Bed)
		}
		shared.beds[release] = bed
	}
	t.Cleanup(func() { bed.expectNothingLeft(t) })
	return bed
}

// Newest returns the shared containerd of the newest release.
func Newest(t *testing.T) *Bed {
	t.Helper()
	return Release(t, harness.Releases[0])
}

// Own starts a containerd that only this test uses, which may restart it or
// change files below it.
func Own(t *testing.T, o harness.Options) *Bed {
	t.Helper()
	o.Release = or(o.Release, harness.Releases[0])
	o.LogLevel = or(o.LogLevel, "debug")
	bed := start(t, needBuild(t, o.Release), o)
	t.Cleanup(func() {
		bed.expectNothingLeft(t)
		ctx, cancel := context.WithTimeout(context.Background(), Step)
		defer cancel()
		if err := bed.Stop(ctx); err != nil {
			t.Errorf("stop containerd: %v", err)
		}
	})
	return bed
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

func start(t *testing.T, tree harness.Tree, o harness.Options) *Bed {
	t.Helper()
	c, err := harness.Start(t.Context(), tree, o)
	if err != nil {
		t.Fatal(err)
	}
	return &Bed{Containerd: c, Tree: tree, imported: make(map[string]string)}
}

// needBuild skips a test for which something is not built, or fails it where
// CI=true says that everything is meant to be.
func needBuild(t *testing.T, release string) harness.Tree {
	t.Helper()
	tree, err := harness.FindTree()
	if err != nil {
		t.Fatal(err)
	}
	err = harness.Need("tools", tree.Containerd(release), tree.Ctr(release), tree.MkfsErofs(), tree.QEMU())
	if err == nil {
		err = harness.Need("guest-image images", tree.Shim(), tree.Kernel(), tree.Initrd())
	}
	need.NoError(t, err)
	need.Root(t, "for containerd")
	return tree
}

// Image imports one of the archives of `make images` for a snapshotter and
// returns its name. It does so once.
func (b *Bed) Image(t *testing.T, archive, snapshotter string) string {
	t.Helper()
	path := b.Tree.Build("images", archive+".tar")
	if err := harness.Need("images", path); err != nil {
		t.Fatal(err)
	}
	return b.ImportFile(t, path, snapshotter)
}

// ImportFile is Image for an archive that lies elsewhere.
func (b *Bed) ImportFile(t *testing.T, path, snapshotter string) string {
	t.Helper()
	key := path + " " + snapshotter
	if name, ok := b.imported[key]; ok {
		return name
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	names, err := b.Import(ctx, path, snapshotter)
	if err != nil {
		t.Fatalf("%v\n%s", err, b.LogTail(20))
	}
	if len(names) != 1 {
		t.Fatalf("%s has the images %q, want one", filepath.Base(path), names)
	}
	b.imported[key] = names[0]
	return names[0]
}

// expectNothingLeft fails the test if anything of a container is still there,
// and shows the daemon's log if the test failed.
func (b *Bed) expectNothingLeft(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), After)
	defer cancel()
	left, err := b.Leftovers(ctx)
	if err != nil {
		t.Errorf("look for leftovers: %v", err)
	}
	left = slices.DeleteFunc(left, func(one string) bool { return slices.Contains(b.known, one) })
	b.known = append(b.known, left...)
	if len(left) > 0 {
		t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	if t.Failed() {
		t.Logf("the end of containerd's log:\n%s", b.LogTail(60))
	}
}
