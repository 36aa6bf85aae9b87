package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/uevent"
	"github.com/erofsvm/erofsvm/test/need"
)

// loopDisks finds loop devices in the place of virtio disks: the same kernel
// code mounts them.
type loopDisks map[string]string

func (d loopDisks) Find(ctx context.Context, disk uevent.Disk) (string, error) {
	source := disk.Source
	if disk.Partition != 0 {
		source = fmt.Sprintf("%s p%d", source, disk.Partition)
	}
	if dev, ok := d[source]; ok {
		return dev, nil
	}
	<-ctx.Done()
	return "", ctx.Err()
}

// system has these disks and nothing else: no modules, no device mapper.
func (d loopDisks) system() System { return System{Disks: d} }

func loop(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	return dev
}

// writable makes a disk with an ext4 filesystem that has the tree of dir.
func writable(t *testing.T, dir string) string {
	t.Helper()
	return loop(t, writableImage(t, dir))
}

func writableImage(t *testing.T, dir string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "rwlayer.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool(t, "mkfs.ext4", ""), "-q", "-F", "-d", dir, image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	return image
}

func layer(t *testing.T, files map[string]string) string {
	t.Helper()
	return loop(t, layerImage(t, files))
}

func layerImage(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(t.TempDir(), "layer.erofs")
	if out, err := exec.Command(tool(t, "mkfs.erofs", "erofs-utils/bin"), "--quiet", image, dir).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	return image
}

func plan(t *testing.T, base string, storages ...*pb.Storage) Rootfs {
	t.Helper()
	for _, s := range storages {
		s.MountPoint = RootfsPath(base, "c")
	}
	p, err := Plan(base, "c", storages)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// nothingLeft fails if a container left a mount or a directory.
func nothingLeft(t *testing.T, base string) {
	t.Helper()
	if left := mountsBelow(t, base); len(left) > 0 {
		t.Errorf("mounts are left: %v", left)
	}
	if entries, err := os.ReadDir(base); err != nil || len(entries) > 0 {
		t.Errorf("directories are left: %v, %v", entries, err)
	}
}

func TestRootfsIsJoinedAndTakenDown(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	disks := loopDisks{
		"08/00": writable(t, t.TempDir()),
		"08/01": layer(t, map[string]string{"who": "top", "a": "a"}),
		"08/02": layer(t, map[string]string{"who": "bottom", "b": "b"}),
	}
	p := plan(t, base, upper(optMkdir+"{{ mount 0 }}/upper:0751", optMkdir+"{{ mount 0 }}/work:0700"), lower("08/01"), lower("08/02"))
	for range 2 { // the second time on a layer that was used
		m, err := p.Mount(t.Context(), base, disks.system())
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"who": "top", "a": "a", "b": "b"} {
			if got, err := os.ReadFile(filepath.Join(m.Path, name)); string(got) != want {
				t.Errorf("%s is %q, %v", name, got, err)
			}
		}
		if err := os.WriteFile(filepath.Join(m.Path, "who"), []byte("changed"), 0o644); err != nil {
			t.Error(err)
		}
		if st, err := os.Stat(m.Path); err != nil || st.Mode().Perm() != 0o751 {
			t.Errorf("root directory: %v, %v", st.Mode(), err)
		}
		if err := os.WriteFile(filepath.Join(m.Path, "who"), []byte("top"), 0o644); err != nil {
			t.Error(err)
		}
		if err := m.Unmount(); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, base)
	}
}

func TestSingleLayerIsReadOnly(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	m, err := plan(t, base, lower("08/01")).Mount(t.Context(), base, loopDisks{"08/01": layer(t, map[string]string{"a": "a"})}.system())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.Path, "a"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, base)
}

// TestOverlayOfManyLayers has as many lower layers as the kernel takes, and far
// more than an option page of mount(2) would hold.
func TestOverlayOfManyLayers(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	disks := loopDisks{"08/00": writable(t, t.TempDir())}
	storages := []*pb.Storage{upper()}
	for i := range maxLowers {
		source := fmt.Sprintf("%02x/%02x", 9+i/256, i%256)
		disks[source] = layer(t, map[string]string{fmt.Sprint(i): ""})
		storages = append(storages, lower(source))
	}
	m, err := plan(t, base, storages...).Mount(t.Context(), base, disks.system())
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(m.Path); err != nil || len(entries) != maxLowers {
		t.Errorf("%d files, %v", len(entries), err)
	}
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, base)
}

func TestFailedMountLeavesNothing(t *testing.T) {
	if privateMounts(t) {
		return
	}
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	hostile := t.TempDir()
	if err := os.Symlink("/tmp", filepath.Join(hostile, "upper")); err != nil {
		t.Fatal(err)
	}
	good, pristine := layer(t, map[string]string{"a": "a"}), writable(t, t.TempDir())
	for name, c := range map[string]struct {
		disks loopDisks
		says  string
	}{
		"a lower that is no filesystem":  {loopDisks{"08/00": pristine, "08/01": loop(t, garbage)}, "disk 08/01: mount erofs"},
		"an upper that is no filesystem": {loopDisks{"08/00": loop(t, garbage), "08/01": good}, "disk 08/00: mount ext4"},
		"a disk that does not come":      {loopDisks{"08/00": pristine}, "deadline exceeded"},
		"an upper with a link":           {loopDisks{"08/00": writable(t, hostile), "08/01": good}, "upper/upper"},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err := plan(t, base, upper(), lower("08/01")).Mount(ctx, base, c.disks.system())
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			nothingLeft(t, base)
		})
	}
}

func TestContainerDirectoryOfAnotherIsNotTakenOver(t *testing.T) {
	base := t.TempDir()
	left := filepath.Join(base, "c")
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := plan(t, base, upper(), lower("08/01")).Mount(t.Context(), base, loopDisks{}.system())
	if !errors.Is(err, os.ErrExist) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(left); err != nil {
		t.Errorf("it was removed: %v", err)
	}
}

func TestBusyRootfsCanBeUnmountedLater(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	m, err := plan(t, base, upper(), lower("08/01")).Mount(t.Context(), base,
		loopDisks{"08/00": writable(t, t.TempDir()), "08/01": layer(t, map[string]string{"a": "a"})}.system())
	if err != nil {
		t.Fatal(err)
	}
	user, err := os.Open(filepath.Join(m.Path, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), m.Path) {
		t.Errorf("busy: %v", err)
	}
	user.Close()
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, base)
}

// TestMkdirStaysInside tries what a hostile writable layer could hold.
func TestMkdirStaysInside(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	for name, target := range map[string]string{"abs": outside, "up": "../" + filepath.Base(outside), "proc": "/proc/self/root", "dangling": "/nothing"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range [][]string{{"abs"}, {"abs", "x"}, {"up", "x"}, {"proc", "x"}, {"dangling"}, {"file"}, {"file", "x"}} {
		d := Mkdir{Path: path, Mode: 0o755, UID: -1, GID: -1}
		if err := d.make(root); err == nil {
			t.Errorf("%v was made", path)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}

func TestMkdirGivesModeAndOwnerToNewDirectoriesOnly(t *testing.T) {
	need.Root(t, "to change owners")
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "old"), 0o700); err != nil {
		t.Fatal(err)
	}
	d := Mkdir{Path: []string{"old", "new"}, Mode: 0o2775, UID: 7, GID: 8}
	for range 2 { // and again, when all is there
		if err := d.make(root); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]struct {
		mode     uint32
		uid, gid uint32
	}{"old": {0o700, 0, 0}, "old/new": {0o2775, 7, 8}} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root, path), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%s: mode %o, owner %d:%d", path, st.Mode&0o7777, st.Uid, st.Gid)
		}
	}
}
