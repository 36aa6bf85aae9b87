package rootfs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
)

// TestWhatTheRuntimeOrTheGuestCannotDoIsRefused has lists that are understood,
// and the switch that each needs. Without it they are refused before a file is
// looked at; with it the planner goes on to the files, which are not there.
func TestWhatTheRuntimeOrTheGuestCannotDoIsRefused(t *testing.T) {
	verity := option(1, "X-containerd.dmverity=/s/2/layer.erofs.dmverity")
	for name, c := range map[string]struct {
		mounts []rootfs.Mount
		class  rootfs.Class
		names  string
		on     func(*rootfs.Options)
	}{
		"host upper": {hostUpperMounts("/nonexistent/upper", baseLayer, topLayer), rootfs.ClassHostUpper, "default_size", func(o *rootfs.Options) { o.MemoryUpper = 1 << 20 }},
		"mkfs":       {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=64M")), rootfs.ClassMkfs, "mkfs", func(o *rootfs.Options) { o.MakeUpper, o.CacheDir = true, "/proc/none" }},
		"dm-verity":  {ofList(verity), rootfs.ClassVerity, "dmverity_mode", func(o *rootfs.Options) { o.Partitions = true }},
	} {
		t.Run(name, func(t *testing.T) {
			var o rootfs.Options
			_, err := rootfs.NewPlanner(o).Plan(deadline(t), c.mounts)
			if err == nil {
				t.Fatal("taken")
			}
			if got := classOf(t, err); got != c.class || !strings.Contains(err.Error(), c.names) {
				t.Errorf("class %s, want %s, with %q in: %v", got, c.class, c.names, err)
			}
			c.on(&o)
			if _, err := rootfs.NewPlanner(o).Plan(deadline(t), c.mounts); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("switched on: %v, want %v", err, os.ErrNotExist)
			}
		})
	}
}

func TestAProtectedLayerIsNeverMerged(t *testing.T) {
	mounts := ofList(option(1, "X-containerd.dmverity=/s/2/layer.erofs.dmverity"))
	_, err := rootfs.NewPlanner(rootfs.Options{Partitions: true, Layers: rootfs.LayersMerge}).Plan(deadline(t), mounts)
	if err == nil || classOf(t, err) != rootfs.ClassVerity || !strings.Contains(err.Error(), `layers = "auto"`) {
		t.Errorf("%v, want a refusal that names the setting", err)
	}
}

// TestAnImageThatIsThereIsNotMade has the mkfs transform on an image that is
// there, as after a restart of a container, with the switch and without.
func TestAnImageThatIsThereIsNotMade(t *testing.T) {
	layer, image := chain(t, t.TempDir(), 1)[0], ext4Image(t, 1<<20)
	mounts := blockMounts(image, layer)
	mounts[0].Type = "mkfs/ext4"
	mounts[0].Options = append(mounts[0].Options, "X-containerd.mkfs.size=64M", "X-containerd.mkfs.uuid=00112233-4455-6677-8899-aabbccddeeff")
	for _, on := range []bool{false, true} {
		planner := plannerWith(t, func(o *rootfs.Options) { o.MakeUpper = on })
		plan, err := planner.Plan(deadline(t), mounts)
		if err != nil {
			t.Fatal(err)
		}
		if d := plan.Disks[0]; d.Format != nil || d.Bytes != 1<<20 || plan.Upper != rootfs.UpperDisk {
			t.Errorf("disk is %+v, want the image as it is", d)
		}
	}
	must(t, os.Remove(image))
	plan, err := plannerWith(t, func(o *rootfs.Options) { o.MakeUpper = true }).Plan(deadline(t), mounts)
	if err != nil {
		t.Fatal(err)
	}
	if d := plan.Disks[0]; d.Format == nil || d.Bytes != 64<<20 || d.Format.Size != d.Bytes || d.Format.FS != "ext4" ||
		d.Format.UUID.String() != "00112233-4455-6677-8899-aabbccddeeff" {
		t.Errorf("disk is %+v, want one to be made", d)
	}
	write(t, image, make([]byte, 1<<20))
	if _, err := plannerWith(t, nil).Plan(deadline(t), mounts); !errors.Is(err, rootfs.ErrUpper) {
		t.Errorf("%v of an image without a filesystem, want %v", err, rootfs.ErrUpper)
	}
}

func TestALayerInMemoryIsBoundedAndWarnedOf(t *testing.T) {
	layer, host := chain(t, t.TempDir(), 1)[0], t.TempDir()
	planner := plannerWith(t, func(o *rootfs.Options) { o.MemoryUpper = 32 << 20 })
	mounts := hostUpperMounts(host, layer)
	plan, err := planner.Plan(deadline(t), mounts)
	if err != nil {
		t.Fatal(err)
	}
	upper := plan.Storages[0]
	want := []string{
		"size=33554432", "mode=0755", "X-kata.overlay-upper", "X-kata.multi-layer=true",
		"X-kata.mkdir.path={{ mount 0 }}/upper:0755", "X-kata.mkdir.path={{ mount 0 }}/work:0755",
	}
	if plan.Upper != rootfs.UpperMemory || len(plan.Disks) != 1 || upper.Disk != rootfs.NoDisk || upper.FSType != "tmpfs" || !slices.Equal(upper.Options, want) {
		t.Errorf("upper on %s is %+v, %d disks, want %q on none", plan.Upper, upper, len(plan.Disks), want)
	}
	if len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0], "memory") || plan.Storages[1].Disk != 0 {
		t.Errorf("%+v, want a warning, and the layer on disk 0", plan)
	}

	// What is in the directory would not be seen.
	write(t, host+"/file", nil)
	if _, err := planner.Plan(deadline(t), mounts); err == nil || classOf(t, err) != rootfs.ClassHostUpper || !strings.Contains(err.Error(), `"file"`) {
		t.Errorf("%v, want a refusal that names the file", err)
	}
	if _, err := planner.Plan(deadline(t), hostUpperMounts(host+"/file", layer)); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("%v of a file, want %v", err, syscall.ENOTDIR)
	}
	_, err = plannerWith(t, func(o *rootfs.Options) { o.MemoryUpper = -1 }).Plan(deadline(t), mounts)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v of a negative size, want an invalid argument", err)
	}
}

// TestNoLayerIsAnEmptyOne mounts the layer that stands for none.
func TestNoLayerIsAnEmptyOne(t *testing.T) {
	needMounts(t)
	mounts := bareMounts("ext4", nil)
	mounts[0].Source = ext4Image(t, 1<<20)
	var cache string
	planner := plannerWith(t, func(o *rootfs.Options) { cache = o.CacheDir })
	for _, spoil := range []func(string){
		func(path string) {},
		func(path string) { must(t, errors.Join(os.Remove(path), os.WriteFile(path, []byte("spoilt"), 0o400))) },
		func(path string) {},
	} {
		plan, err := planner.Plan(deadline(t), mounts)
		if err != nil {
			t.Fatal(err)
		}
		if plan.Strategy != rootfs.StrategyRaw || plan.Upper != rootfs.UpperDisk || len(plan.Disks) != 2 || len(plan.Storages) != 2 {
			t.Fatalf("plan is %+v", plan)
		}
		image := plan.Disks[1].Path
		if got := trees(t, []string{image})[0]; len(got) != 1 || !strings.HasPrefix(got[0], `"." drwxr-xr-x 0:0`) {
			t.Errorf("an empty layer shows %q", got)
		}
		spoil(image)
	}
	entries, err := os.ReadDir(cache)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v in the cache, want one file", entries, err)
	}
	fsck := erofstest.Tool(t, "erofs-utils/bin/fsck.erofs")
	if out, err := exec.Command(fsck, filepath.Join(cache, entries[0].Name())).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

// TestADescriptorIsNotTakenForALayer has a file that QEMU would follow to any
// other on the host.
func TestADescriptorIsNotTakenForALayer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "merged.vmdk")
	write(t, path, []byte("# Disk DescriptorFile\nversion=1\n"+strings.Repeat("# \n", 2000)))
	must(t, os.Truncate(path, 4096))
	_, err := newPlanner(t).Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), path))
	if err == nil || classOf(t, err) != rootfs.ClassUnknown || !strings.Contains(err.Error(), "device=") {
		t.Errorf("%v, want a refusal that says what to hand over", err)
	}
}

func TestDiscardIsAskedForUnlessTheListSaysOtherwise(t *testing.T) {
	layer, image := chain(t, t.TempDir(), 1)[0], ext4Image(t, 1<<20)
	for given, want := range map[string]string{"": "rw discard", "discard": "rw discard", "nodiscard": "rw nodiscard"} {
		mounts := blockMounts(image, layer)
		if given != "" {
			mounts[0].Options = append(mounts[0].Options, given)
		}
		plan, err := plannerWith(t, func(o *rootfs.Options) { o.Discard = true }).Plan(deadline(t), mounts)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(plan.Storages[0].Options, " "); !strings.HasPrefix(got, want+" X-kata.") {
			t.Errorf("with %q the options are %q, want %q in front", given, got, want)
		}
	}
}
