package emptydir

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/need"
)

// pod makes the directories that a kubelet has for a pod, and a volume of it.
func pod(t *testing.T, volume string) (root, dir string) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "pods", "0f-1a")
	dir = filepath.Join(root, plugin, volume)
	mkdir(t, dir, 0o777)
	return root, dir
}

func mkdir(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, mode)); err != nil {
		t.Fatal(err)
	}
}

// mounts mounts something for the rest of a test.
func mounts(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	need.Root(t, "to mount")
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Fatalf("mount %s at %s: %v", source, target, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
}

func seen(t *testing.T, source string) *Volume {
	t.Helper()
	v, err := Look(source)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAVolumeOnDiskIsKnownByItsPath(t *testing.T) {
	_, dir := pod(t, "scratch")
	if err := errors.Join(os.Chmod(dir, 0o777|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	v := seen(t, dir+"/")
	if v == nil || v.Dir != dir || v.Sub != "" || v.Memory || v.Owner.Mode != 0o2777 || int(v.Owner.UID) != os.Getuid() {
		t.Errorf("%+v", v)
	}
}

func TestWhatElseIsMountedIsNoVolume(t *testing.T) {
	root, dir := pod(t, "scratch")
	for _, source := range []string{
		filepath.Join(dir, "below"), filepath.Dir(dir), filepath.Join(root, "volumes/kubernetes.io~configmap/scratch"),
		filepath.Join(root, "volume-subpaths/scratch/app/0"), "/etc/hosts", "/" + plugin + "/x",
	} {
		mkdirIfMissing(t, source)
		if v := seen(t, source); v != nil {
			t.Errorf("%s: %+v", source, v)
		}
	}
	file := filepath.Join(root, plugin, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if v := seen(t, file); v != nil {
		t.Errorf("a file: %+v", v)
	}
}

func mkdirIfMissing(t *testing.T, path string) {
	t.Helper()
	if strings.HasPrefix(path, os.TempDir()) {
		mkdir(t, path, 0o755)
	}
}

func TestAVolumeInMemoryHasItsSize(t *testing.T) {
	_, dir := pod(t, "cache")
	mounts(t, "tmpfs", dir, "tmpfs", 0, "size=3145728,mode=1777")
	if v := seen(t, dir); v == nil || !v.Memory || v.Bytes != 3<<20 || v.Owner.Mode != 0o1777 {
		t.Errorf("%+v", v)
	}
}

func TestASubPathIsAPartOfItsVolume(t *testing.T) {
	for _, medium := range []string{"", "memory"} {
		t.Run(medium, func(t *testing.T) {
			root, dir := pod(t, "data")
			if medium != "" {
				mounts(t, "tmpfs", dir, "tmpfs", 0, "size=1048576")
			}
			mkdir(t, filepath.Join(dir, "a/b"), 0o750)
			at := filepath.Join(root, "volume-subpaths/data/app/1")
			mkdir(t, at, 0o755)
			mounts(t, filepath.Join(dir, "a/b"), at, "", unix.MS_BIND, "")
			v := seen(t, at)
			if v == nil || v.Dir != dir || v.Sub != "a/b" || v.Memory != (medium != "") || v.SubOwner.Mode != 0o750 || v.Owner.Mode == 0o750 {
				t.Errorf("%+v", v)
			}
		})
	}
	t.Run("of another volume", func(t *testing.T) {
		root, _ := pod(t, "data")
		other := filepath.Join(root, "volumes/kubernetes.io~configmap/config")
		at := filepath.Join(root, "volume-subpaths/config/app/0")
		mkdir(t, other, 0o755)
		mkdir(t, at, 0o755)
		mounts(t, other, at, "", unix.MS_BIND, "")
		if v := seen(t, at); v != nil {
			t.Errorf("%+v", v)
		}
	})
}

func TestAVolumeOfHugePagesHasTheirSize(t *testing.T) {
	_, dir := pod(t, "pages")
	if out, err := exec.Command("grep", "-c", "hugetlbfs", "/proc/filesystems").Output(); err != nil {
		t.Skipf("the kernel has no hugetlbfs: %s", out)
	}
	mounts(t, "hugetlbfs", dir, "hugetlbfs", 0, "")
	if v := seen(t, dir); v == nil || v.HugePage < 64<<10 || v.Memory || !slices.Contains([]string{"64KB", "1MB", "2MB", "1GB"}, v.HugePageName()) {
		t.Errorf("%+v", v)
	}
}

func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

func TestTheImageOfAVolumeStays(t *testing.T) {
	_, dir := pod(t, "scratch")
	v := seen(t, dir)
	for i, want := range []string{"", "first"} {
		f, err := v.Image(create)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, _ := f.Read(buf); string(buf[:n]) != want {
			t.Errorf("the image has %q at time %d, want %q", buf[:n], i, want)
		}
		if _, err := f.WriteAt([]byte("first"), 0); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}

// TestAFileOfOthersIsNoImage: the directory is one that others may write to.
func TestAFileOfOthersIsNoImage(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"link":      func(p string) error { return os.Symlink("/etc/shadow", p) },
		"hard link": func(p string) error { return errors.Join(os.WriteFile(p+"2", nil, 0o600), os.Link(p+"2", p)) },
		"fifo":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"mode":      func(p string) error { return os.WriteFile(p, nil, 0o644) },
	} {
		_, dir := pod(t, "scratch")
		if err := put(filepath.Join(dir, ImageName)); err != nil {
			t.Fatal(err)
		}
		v := seen(t, dir)
		if f, err := v.Image(create); err == nil {
			t.Errorf("%s: %s is opened", name, f.Name())
		}
	}
	_, dir := pod(t, "scratch")
	failure := errors.New("no tool")
	if _, err := seen(t, dir).Image(func(string) (*os.File, error) { return nil, failure }); !errors.Is(err, failure) {
		t.Errorf("%v", err)
	}
}
