package rootfs_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
)

// openFiles are the names behind the descriptors of this process that lie in
// one of the directories.
func openFiles(t *testing.T, dirs ...string) []string {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var names []string
	for _, e := range list {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the directory itself
		}
		if slices.ContainsFunc(dirs, func(dir string) bool { return filepath.Dir(name) == dir }) {
			names = append(names, name)
		}
	}
	return names
}

// lending has a planner that lends, and the files of its lists.
type lending struct {
	planner    *rootfs.Planner
	cache, dir string
	layers     []string
	upper      string
	mixed      []string // layers that cannot be merged
	protected  string
	index      string // of layers
	junk       string // not an image
}

func newLending(t *testing.T) *lending {
	l := &lending{dir: t.TempDir()}
	l.planner = plannerWith(t, func(o *rootfs.Options) {
		o.Lend, o.MakeUpper, o.MemoryUpper = true, true, 1<<20
		l.cache = o.CacheDir
	})
	l.layers, l.mixed = chain(t, l.dir, 3), mixedLayers(t, l.dir)
	l.upper, l.protected, l.index, l.junk = l.dir+"/rwlayer.img", l.dir+"/protected", l.dir+"/index", l.dir+"/junk"
	must(t, os.Rename(ext4Image(t, 1<<20), l.upper))
	erofstest.Layer(t, l.dir, "protected", []erofstest.Entry{erofstest.File("x", "x")})
	erofstest.Protect(t, l.protected)
	// A test of its own, so that it keeps no layer open.
	t.Run("index", func(t *testing.T) { makeIndex(t, l.index, l.layers) })
	write(t, l.junk, make([]byte, 4096))
	return l
}

// TestALentPlanHasEachOfItsFilesOnceUntilItIsClosed wants every file of a plan,
// and none beside them.
func TestALentPlanHasEachOfItsFilesOnceUntilItIsClosed(t *testing.T) {
	l := newLending(t)
	verity := blockMounts(l.upper, l.protected)
	verity[1].Options = append(verity[1].Options, "X-containerd.dmverity="+l.protected+".dmverity")
	index := blockMounts(l.upper, l.index)
	for _, layer := range l.layers {
		index[1].Options = append(index[1].Options, "device="+layer)
	}
	scratch := bareMounts("ext4", nil)
	scratch[0].Source = l.upper
	made := blockMounts(l.dir+"/none.img", l.layers[0])
	made[0].Type, made[0].Options = "mkfs/ext4", append(made[0].Options, "X-containerd.mkfs.size=64M")
	for name, c := range map[string]struct {
		mounts []rootfs.Mount
		files  int
	}{
		"raw":              {blockMounts(l.upper, l.layers[0]), 2},
		"merged":           {blockMounts(l.upper, l.layers...), 5},
		"merged, cached":   {blockMounts(l.upper, l.layers...), 5},
		"one layer twice":  {blockMounts(l.upper, l.layers[0], l.layers[0]), 3},
		"index":            {index, 5},
		"partitioned":      {blockMounts(l.upper, l.mixed...), 1 + len(l.mixed)},
		"dm-verity":        {verity, 2},
		"no layer":         {scratch, 2},
		"image to be made": {made, 1},
		"memory":           {hostUpperMounts("/nonexistent", l.layers[0]), 1},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := l.planner.Plan(deadline(t), c.mounts)
			must(t, err)
			if open := openFiles(t, l.dir, l.cache); len(open) != c.files {
				t.Errorf("%d files are open, want %d: %q", len(open), c.files, open)
			}
			for _, d := range plan.Disks {
				paths := []string{d.Path}
				for _, e := range d.Extents {
					paths = append(paths, e.Path)
				}
				for _, p := range d.Partitions {
					paths = append(paths, p.Path)
				}
				for _, p := range paths {
					if want := p != "" && d.Format == nil; (plan.File(p) != nil) != want {
						t.Errorf("file of %q is %v", p, plan.File(p))
					}
				}
				if d.Format != nil || d.Path == "" {
					continue
				}
				flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, plan.File(d.Path).Fd(), syscall.F_GETFL, 0)
				if writable := flags&syscall.O_ACCMODE == syscall.O_RDWR; errno != 0 || writable == d.ReadOnly {
					t.Errorf("%q has flags %#x, %v", d.Path, flags, errno)
				}
			}
			for range 2 {
				must(t, plan.Close())
			}
			if plan.File(l.upper) != nil {
				t.Error("a closed plan has a file")
			}
			if open := openFiles(t, l.dir, l.cache); len(open) != 0 {
				t.Errorf("%q are open after Close", open)
			}
		})
	}
}

func TestARefusedPlanLeavesNoFileOpen(t *testing.T) {
	l := newLending(t)
	verity := blockMounts(l.upper, l.layers[0])
	verity[1].Options = append(verity[1].Options, "X-containerd.dmverity="+l.protected+".dmverity")
	index := blockMounts(l.upper, l.index)
	index[1].Options = append(index[1].Options, "device="+l.layers[0])
	for name, mounts := range map[string][]rootfs.Mount{
		"no such layer":           blockMounts(l.upper, l.layers[0], l.dir+"/none"),
		"no image":                blockMounts(l.upper, l.layers[0], l.junk),
		"no filesystem":           blockMounts(l.junk, l.layers...),
		"image is a layer":        blockMounts(l.layers[0], l.layers...),
		"tree of another layer":   verity,
		"index of other devices":  index,
		"merge refused":           blockMounts(l.upper, l.index, l.layers[0]),
		"a layer that is no file": blockMounts(l.upper, l.layers[0], l.dir),
	} {
		t.Run(name, func(t *testing.T) {
			if plan, err := l.planner.Plan(deadline(t), mounts); err == nil {
				t.Errorf("planned: %+v", plan)
			}
			if open := openFiles(t, l.dir, l.cache); len(open) != 0 {
				t.Errorf("%q are open", open)
			}
		})
	}
	plain := plannerWith(t, nil)
	plan, err := plain.Plan(deadline(t), blockMounts(l.upper, l.layers...))
	must(t, err)
	if open := openFiles(t, l.dir, l.cache); len(open) != 0 || plan.File(l.upper) != nil || plan.Close() != nil {
		t.Errorf("%q are open for a plan that does not lend", open)
	}
}

// TestAFileThatIsReplacedAfterThePlanIsNotTheOneThatIsLent replaces each file of
// a plan by another, and by a link.
func TestAFileThatIsReplacedAfterThePlanIsNotTheOneThatIsLent(t *testing.T) {
	l := newLending(t)
	plan, err := l.planner.Plan(deadline(t), blockMounts(l.upper, l.layers...))
	must(t, err)
	defer plan.Close()
	for i, path := range append([]string{l.upper}, l.layers...) {
		want := read(t, path)
		must(t, os.Remove(path))
		if i%2 == 0 {
			write(t, path, []byte("another file"))
		} else {
			must(t, os.Symlink("/etc/passwd", path))
		}
		got, err := io.ReadAll(io.NewSectionReader(plan.File(path), 0, 1<<30))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q lends %d bytes, %v, want the %d that were checked", path, len(got), err, len(want))
		}
	}
}

// TestAMergeReadsTheFilesThatWereChecked has an mkfs.erofs before which the
// layers change their names.
func TestAMergeReadsTheFilesThatWereChecked(t *testing.T) {
	dir := t.TempDir()
	layers := chain(t, dir, 2)
	mkfs := filepath.Join(dir, "mkfs.erofs")
	script := "#!/bin/sh\n[ \"$1\" = --version ] || mv " + layers[0] + " " + dir + "/aside\nexec " + erofstest.Mkfs(t) + " \"$@\"\n"
	must(t, os.WriteFile(mkfs, []byte(script), 0o755))
	planner := plannerWith(t, func(o *rootfs.Options) { o.MkfsErofs, o.Lend = mkfs, true })
	plan, err := planner.Plan(deadline(t), blockMounts(ext4Image(t, 1<<20), layers...))
	must(t, err)
	defer plan.Close()
	if plan.Strategy != rootfs.StrategyMerged || plan.File(layers[0]) == nil {
		t.Errorf("%+v, want the layers merged", plan)
	}
	if _, err := os.Stat(dir + "/aside"); err != nil {
		t.Fatal("the layer was not renamed: ", err)
	}
}

// TestMoreFilesThanTheProcessMayOpenAreRefusedAtOnce runs in a process of its
// own, with a limit of 100 files.
func TestMoreFilesThanTheProcessMayOpenAreRefusedAtOnce(t *testing.T) {
	if os.Getenv("EROFSVM_TEST_FEW_FILES") == "" {
		cmd := exec.Command("/bin/sh", "-c", `ulimit -n 100; exec "$0" -test.run "^TestMoreFilesThanTheProcess"`, os.Args[0])
		cmd.Env = append(os.Environ(), "EROFSVM_TEST_FEW_FILES=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	l := newLending(t)
	_, err := l.planner.Plan(deadline(t), blockMounts(l.upper, slices.Repeat(l.layers[:1], 50)...))
	if !errors.Is(err, files.ErrLimit) {
		t.Errorf("%v, want %v", err, files.ErrLimit)
	}
	if open := openFiles(t, l.dir, l.cache); len(open) != 0 {
		t.Errorf("%q are open", open)
	}
}
