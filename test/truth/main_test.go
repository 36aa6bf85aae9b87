package truth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/need"
	"github.com/erofsvm/erofsvm/test/truth/layers"
)

// Deadlines, with room for emulation on a busy machine.
const (
	boot = 90 * time.Second
	step = 60 * time.Second
)

// inGuest is the path of the static program in each container.
const inGuest = "in-guest"

// made is what the tests of this binary share: made once, below one directory.
var made struct {
	dir     string
	build   func() ([]byte, error) // the program in-guest
	chain   func() (*chain, error)
	revived func() (*chain, error)
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "truth")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	made.dir = dir
	made.build = sync.OnceValues(buildInGuest)
	made.chain = sync.OnceValues(func() (*chain, error) {
		return makeChain("c", func(extra map[string][]byte) ([][]byte, error) { return layers.Layers(deepest, extra) })
	})
	made.revived = sync.OnceValues(func() (*chain, error) { return makeChain("r", layers.Revived) })
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// buildInGuest builds the static program and returns its bytes.
func buildInGuest() ([]byte, error) {
	path := filepath.Join(made.dir, inGuest)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/in-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build in-guest: %w\n%s", err, out)
	}
	return os.ReadFile(path)
}

// built returns the tree of a build with everything that the tests need.
func built(t *testing.T) harness.Tree {
	t.Helper()
	tree, err := harness.FindTree()
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(harness.Need("tools", tree.MkfsErofs(), tree.QEMU()), harness.Need("guest-image", tree.Kernel(), tree.Initrd()))
	need.NoError(t, err)
	need.Root(t, "to unpack a reference")
	return tree
}

// within is a context for a part of the test.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// deepest is the number of layers of the longest chain: one more than
// containerd's overlayfs snapshotter can have.
const deepest = 128

// chain is the image whose lowest layers every row is made of.
type chain struct {
	tars      [][]byte // the oldest first
	plain     []string
	tarIndex  []string
	protected []layers.Lower
	reference *layers.Reference
	maker     layers.Maker
	writable  string // an ext4 image with the program in its upper directory
}

// makeChain makes all that rows share, below a directory of the given name, of
// the tars of an image.
func makeChain(name string, tars func(extra map[string][]byte) ([][]byte, error)) (*chain, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	tree, err := harness.FindTree()
	if err != nil {
		return nil, err
	}
	program, err := made.build()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(made.dir, name)
	c := &chain{maker: layers.Maker{Mkfs: tree.MkfsErofs(), Dir: filepath.Join(dir, "layers")}}
	if c.tars, err = tars(map[string][]byte{inGuest: program}); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.maker.Dir, 0o755); err != nil {
		return nil, err
	}
	for i, tar := range c.tars {
		plain, err := c.maker.Plain(ctx, fmt.Sprintf("plain-%d.erofs", i), tar)
		if err != nil {
			return nil, err
		}
		index, err := c.maker.TarIndex(ctx, fmt.Sprintf("tar-%d.erofs", i), tar)
		if err != nil {
			return nil, err
		}
		protected, err := c.maker.Protected(ctx, fmt.Sprintf("verity-%d.erofs", i), tar)
		if err != nil {
			return nil, err
		}
		c.plain, c.tarIndex, c.protected = append(c.plain, plain), append(c.tarIndex, index), append(c.protected, protected)
	}
	if c.reference, err = layers.Unpack(ctx, filepath.Join(dir, "r"), c.tars); err != nil {
		return nil, err
	}
	return c, c.makeWritable(ctx, filepath.Join(dir, "writable"), program)
}

// makeWritable makes the image of a container that has written already, so that
// upper and work are there.
func (c *chain) makeWritable(ctx context.Context, from string, program []byte) error {
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(from, dir), 0o755); err != nil {
			return err
		}
	}
	err := os.WriteFile(filepath.Join(from, "upper", inGuest), program, 0o755)
	if err != nil {
		return err
	}
	c.writable, err = c.maker.Writable(ctx, "writable.img", 64<<20, from)
	return err
}
