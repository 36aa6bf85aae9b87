package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/runtime/emptydir"
	"github.com/erofsvm/erofsvm/test/need"
)

// kubeletDir makes the directory of an emptyDir as a kubelet does.
func kubeletDir(t *testing.T, w *world, name string) string {
	t.Helper()
	dir := filepath.Join(w.dir, "pods", "0f-1a", "volumes", "kubernetes.io~empty-dir", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (w *world) createdAs(t *testing.T, id, spec string) *pb.CreateContainerRequest {
	t.Helper()
	if _, err := w.Create(t.Context(), w.request(t, id, spec)); err != nil {
		t.Fatal(err)
	}
	return w.agent.container(id)
}

// sharedOf are the storages of a request that are the pod's.
func sharedOf(r *pb.CreateContainerRequest) []*pb.Storage {
	return slices.DeleteFunc(slices.Clone(r.GetStorages()), func(s *pb.Storage) bool { return !s.GetShared() })
}

func TestAnEmptyDirIsOneDiskForAllContainersOfThePod(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	dir := kubeletDir(t, w, "scratch")
	spec := bindSpec(bindMount("/etc/hosts", "/etc/hosts", "ro"), bindMount("/scratch", dir, "rw"))
	first, second := w.createdAs(t, "c", spec), w.createdAs(t, "d", spec)
	mkdir := fmt.Sprintf("X-kata.mkdir.path={{ mount 0 }}/data:2777:%d:%d", os.Getuid(), os.Getgid())
	for _, r := range []*pb.CreateContainerRequest{first, second} {
		s := sharedOf(r)
		if len(s) != 1 || s[0].GetDriver() != "blk" || s[0].GetFstype() != "ext4" || s[0].GetMountPoint() != guestRoot+"/sandbox/volume-0" ||
			!slices.Equal(s[0].GetOptions(), []string{"discard", mkdir}) {
			t.Errorf("%s has %v", r.GetContainerId(), s)
		}
		if m := r.GetOCI().GetMounts()[1]; m.GetSource() != guestRoot+"/sandbox/volume-0/data" || m.GetType() != "bind" {
			t.Errorf("%s has the mount %v", r.GetContainerId(), m)
		}
	}
	for _, c := range w.agent.copied {
		if strings.Contains(c.GetPath(), "/1") {
			t.Errorf("%s is copied", c.GetPath())
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, emptydir.ImageName), &st); err != nil || st.Size != int64(w.config.Mounts.EmptyDirMiB)<<20 || st.Blocks*512 > 64<<20 {
		t.Errorf("the image has %d bytes, %d on disk, %v", st.Size, st.Blocks*512, err)
	}
	for _, id := range []string{"d", "c"} {
		if got := w.vm.attached(); slices.Index(got, "volume-0") < 0 || slices.Index(got, "volume-0") != len(got)-1 {
			t.Errorf("attached are %q", got)
		}
		if id == "c" {
			break // with it goes the VM, as follows
		}
		if _, err := w.Delete(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Delete(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	calls := w.agent.made()
	if n := slices.Index(calls, "DestroySandbox"); n < slices.Index(calls, "RemoveContainer c") {
		t.Errorf("the guest does not write back after its last container: %q", calls)
	}
}

func (a *fakeAgent) DestroySandbox(ctx context.Context, _ *pb.DestroySandboxRequest) (*emptypb.Empty, error) {
	return ok(a.called(ctx, "DestroySandbox"))
}

func TestAnEmptyDirInMemoryIsBoundedByTheVM(t *testing.T) {
	need.Root(t, "to mount")
	w := newWorld(t, newFakeAgent())
	w.config.Hypervisor.MaxMemoryMiB = 1024
	var mounts []string
	for name, size := range map[string]string{"small": "size=3145728", "large": "size=1T"} {
		dir := kubeletDir(t, w, name)
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, size); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
		mounts = append(mounts, bindMount("/"+name, dir, "rw"))
	}
	r := w.createdAs(t, "c", bindSpec(mounts...))
	var sizes []string
	for _, s := range sharedOf(r) {
		if s.GetDriver() != "ephemeral" || s.GetFstype() != "tmpfs" {
			t.Errorf("%v", s)
		}
		sizes = append(sizes, s.GetOptions()[0])
	}
	slices.Sort(sizes)
	if !slices.Equal(sizes, []string{"size=1073741824", "size=3145728"}) {
		t.Errorf("sizes %q", sizes)
	}
}

func TestAnEmptyDirOfHugePagesNeedsALimitOfThem(t *testing.T) {
	need.Root(t, "to mount")
	w := newWorld(t, newFakeAgent())
	dir := kubeletDir(t, w, "pages")
	if err := unix.Mount("hugetlbfs", dir, "hugetlbfs", 0, ""); err != nil {
		if errors.Is(err, unix.ENODEV) {
			t.Skip("the kernel has no hugetlbfs")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	volume := bindSpec(bindMount("/pages", dir, "rw"))
	other := newWorld(t, newFakeAgent())
	_, err := other.Create(t.Context(), other.request(t, "without", volume))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/pages") || !strings.Contains(err.Error(), "disable_hugetlb_controller") {
		t.Errorf("without a limit: %v", err)
	}
	size := (&emptydir.Volume{HugePage: fs.Bsize}).HugePageName()
	limited := strings.Replace(volume, `"root":{}`, fmt.Sprintf(`"root":{},"linux":{"resources":{"hugepageLimits":[{"pageSize":%q,"limit":%d}]}}`, size, fs.Bsize), 1)
	shared := sharedOf(w.createdAs(t, "c", limited))
	if len(shared) != 1 || shared[0].GetFstype() != "hugetlbfs" || shared[0].GetOptions()[0] != fmt.Sprintf("pagesize=%d", fs.Bsize) {
		t.Errorf("%v", shared)
	}
}

func TestAnEmptyDirIsABindMountIfThatIsAskedFor(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	w.config.Mounts.EmptyDir = "bind"
	dir := kubeletDir(t, w, "scratch")
	r := w.createdAs(t, "c", bindSpec(bindMount("/scratch", dir, "rw")))
	if len(sharedOf(r)) != 0 || r.GetOCI().GetMounts()[0].GetSource() != guestCopies("c")+"/0" {
		t.Errorf("%v", r)
	}
}

func TestAnImageThatCannotBeMadeFailsTheCreation(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	w.config.Rootfs.MkfsExt4 = "/no/mkfs.ext4"
	dir := kubeletDir(t, w, "scratch")
	_, err := w.Create(t.Context(), w.request(t, "c", bindSpec(bindMount("/scratch", dir, "rw"))))
	if err == nil || !strings.Contains(err.Error(), "rootfs.mkfs_ext4") || !strings.Contains(err.Error(), "/scratch") {
		t.Errorf("%v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}
