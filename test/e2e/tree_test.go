package e2e

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/tree"
)

// covered are the directories of the image over which every container has a
// mount. They are left out of the comparison.
var covered = []string{"dev", "proc"}

// TestTheContainerSeesTheImage: every path of the image, its type, mode, owner,
// size, content, link target, hard links, device numbers, times and extended
// attributes are in the container what they are where containerd's overlayfs
// snapshotter has unpacked the same image on the host.
func TestTheContainerSeesTheImage(t *testing.T) {
	for _, archive := range []string{"one", "two", "first-light"} {
		t.Run(archive, func(t *testing.T) {
			bed := e2etest.Newest(t)
			containerSeesTheImage(t, bed, archive)
		})
	}
}

// containerSeesTheImage compares what a container sees of an image with what the
// overlayfs snapshotter of the same containerd has unpacked. rootfs are mounts in
// the place of those that the client would prepare.
func containerSeesTheImage(t *testing.T, bed *e2etest.Bed, archive string, rootfs ...mount.Mount) *harness.Trace {
	t.Helper()
	image := bed.Image(t, archive, harness.Snapshotter)
	bed.Image(t, archive, "overlayfs")
	want := hostTree(t, bed, image)
	args := []string{"/usr/local/bin/tree-list", "-x", "-mtime"}
	for _, dir := range covered {
		args = append(args, "-skip", dir)
	}
	c := bed.Start(t, e2etest.Spec{
		Image: image, Args: append(args, "/"), Opts: []oci.SpecOpts{onlyMounts("/proc", "/dev")}, Rootfs: rootfs,
	})
	code := c.WaitExitWithin(t, 4*time.Minute)
	c.Delete(t)
	if code != 0 || c.Stderr.String() != "" {
		t.Fatalf("tree-list: code %d, stderr %q", code, c.Stderr)
	}
	got := withoutRootTime(c.Stdout.String())
	t.Logf("%d paths, %d bytes of listing", strings.Count(got, "\n"), len(got))
	if strings.Count(got, "\n") < 10 {
		t.Errorf("the listing is suspiciously short:\n%s", got)
	}
	compareTrees(t, got, withoutRootTime(want))
	trace, err := bed.Trace(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	return trace
}

// onlyMounts takes every mount but these out of a spec.
func onlyMounts(keep ...string) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return !slices.Contains(keep, m.Destination) })
		return nil
	}
}

// hostTree lists the image as the overlayfs snapshotter has it.
func hostTree(t *testing.T, bed *e2etest.Bed, ref string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Boot)
	defer cancel()
	image, err := bed.Client().GetImage(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := image.RootFS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	service := bed.Client().SnapshotService("overlayfs")
	mounts, err := service.View(ctx, t.Name(), identity.ChainID(ids).String(),
		snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := service.Remove(ctx, t.Name()); err != nil {
			t.Errorf("remove the view: %v", err)
		}
	}()
	var listing bytes.Buffer
	err = mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		_, err := tree.List(&listing, root, tree.Options{OneFilesystem: true, Skip: covered, ModTime: true})
		return err
	})
	if err != nil {
		t.Fatalf("list the image on the host: %v", err)
	}
	return listing.String()
}

// withoutRootTime takes the time of modification out of the first line: the root
// is a directory that the snapshotter or the guest has just made.
func withoutRootTime(listing string) string {
	first, rest, _ := strings.Cut(listing, "\n")
	first, _, _ = strings.Cut(first, " mtime ")
	return first + "\n" + rest
}

// compareTrees shows the first lines that differ.
func compareTrees(t *testing.T, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	inGot, inWant := make(map[string]bool), make(map[string]bool)
	for line := range strings.Lines(got) {
		inGot[line] = true
	}
	for line := range strings.Lines(want) {
		inWant[line] = true
	}
	const most = 20
	shown := 0
	show := func(sign, text string, other map[string]bool) {
		for line := range strings.Lines(text) {
			if !other[line] && shown < most {
				t.Errorf("%s %s", sign, strings.TrimSpace(line))
				shown++
			}
		}
	}
	show("only in the container:", got, inWant)
	show("only on the host:     ", want, inGot)
	if shown == 0 {
		t.Error("the same lines in another order")
	}
}
