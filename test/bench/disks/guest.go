package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/truth/layers"
	"github.com/erofsvm/erofsvm/test/truth/vm"
)

// inGuestName is the path, in containers, of the static program that walks.
const inGuestName = "in-guest"

// fioRoot is the tree of fio.
func fioRoot(tree harness.Tree) string { return tree.Tool("fio", "root") }

// guest is the VM in which containers read and walk, with what they are made of.
type guest struct {
	*bench
	vm      *vm.VM
	program []byte // in-guest
	base    []byte // archive of Debian's root

	noisy     noisy          // made for the first VM
	fioLowers []layers.Lower // likewise
}

// inGuest measures what a container sees of its disks.
func (b *bench) inGuest(ctx context.Context) (err error) {
	g := &guest{bench: b}
	if g.program, err = b.buildInGuest(ctx); err != nil {
		return err
	}
	if g.base, err = os.ReadFile(b.tree.Tool("base", "rootfs.tar")); err != nil {
		return err
	}
	if g.vm, err = vm.New(b.tree, nil); err != nil {
		return err
	}
	err = g.reads(ctx)
	if err := errors.Join(err, g.close(ctx)); err != nil || !g.ways {
		return err
	}
	return g.variants(ctx)
}

// close ends the VM.
func (g *guest) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), step)
	defer cancel()
	return g.vm.Close(ctx)
}

func (b *bench) buildInGuest(ctx context.Context) ([]byte, error) {
	path := filepath.Join(b.dir, inGuestName)
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./test/truth/cmd/in-guest")
	build.Dir = b.tree.Root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build in-guest: %w\n%s", err, text)
	}
	return os.ReadFile(path)
}

// run runs a container to its end, which must be a good one, and returns what it
// prints.
func (g *guest) run(ctx context.Context, mounts []rootfs.Mount, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	result, err := g.vm.Run(ctx, mounts, args...)
	return checked(result, err)
}

func checked(result vm.Result, err error) (string, error) {
	if err == nil && result.Code != 0 {
		err = fmt.Errorf("exit code %d: %.500s", result.Code, result.Stderr)
	}
	return result.Stdout, err
}

// hold makes a container that does nothing but have its disks.
func (g *guest) hold(ctx context.Context, mounts []rootfs.Mount) (*vm.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, boot)
	defer cancel()
	c, err := g.vm.Create(ctx, mounts, "/"+inGuestName, "wait")
	if err != nil {
		return nil, err
	}
	if err := c.Start(ctx); err != nil {
		return nil, errors.Join(err, c.Delete(ctx))
	}
	return c, nil
}

// release ends containers, in reverse.
func release(ctx context.Context, held ...*vm.Container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), step)
	defer cancel()
	var errs []error
	for i := len(held) - 1; i >= 0; i-- {
		errs = append(errs, held[i].Delete(ctx))
	}
	return errors.Join(errs...)
}

// archiveOf is an archive of the files below root, owned by root.
func archiveOf(root string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
		case !info.Mode().IsRegular():
			return fmt.Errorf("%s is neither a file nor a directory", path)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("archive %s: %w", root, err)
	}
	return out.Bytes(), nil
}

// writable is the path of a new writable image, with the program for walks in it.
func (g *guest) writable(ctx context.Context, name string, size int64) (string, error) {
	from := filepath.Join(g.dir, name+".d")
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(from, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(from, "upper", inGuestName), g.program, 0o755); err != nil {
		return "", err
	}
	return g.maker.Writable(ctx, name, size, from)
}

// copyOf is a copy of an image, without holes, in a directory of the given name.
func (g *guest) copyOf(image, dir string) (string, error) {
	dir = filepath.Join(g.dir, dir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	copies, err := layers.Copies(dir, image)
	if err != nil {
		return "", err
	}
	return copies[0], nil
}

// layersDisk is the disk that a plan makes of the layers of a list, without the
// runtime; the list must come out as the given strategy.
func (g *guest) layersDisk(ctx context.Context, mounts []rootfs.Mount, want rootfs.Strategy) (rootfs.Disk, error) {
	plan, err := g.planner(filepath.Join(g.dir, "cache"), nil).Plan(ctx, mounts)
	if err != nil {
		return rootfs.Disk{}, err
	}
	if plan.Strategy != want {
		return rootfs.Disk{}, fmt.Errorf("the plan is %s (%s), and %s was to be measured", plan.Strategy, plan.Reason, want)
	}
	for _, d := range plan.Disks {
		if d.Role == rootfs.RoleLayers {
			return d, nil
		}
	}
	return rootfs.Disk{}, errors.New("the plan has no disk of layers")
}

// apart makes the lowers of a chain such as cannot be merged, with the same
// content: the one at i is an index of its archive and not a copy.
func (g *guest) apart(ctx context.Context, name string, chain []layers.Lower, i int, tar []byte) ([]layers.Lower, error) {
	index, err := g.maker.TarIndex(ctx, name, tar)
	if err != nil {
		return nil, err
	}
	lowers := append([]layers.Lower(nil), chain...)
	lowers[i] = layers.Lower{Path: index}
	return lowers, nil
}
