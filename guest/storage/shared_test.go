package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

func sharedDisk(dir string, options ...string) *pb.Storage {
	return &pb.Storage{Driver: "blk", Source: "02/00", Fstype: "ext4", MountPoint: filepath.Join(dir, "v"), Shared: true, Options: options}
}

func sharedMemory(dir string, options ...string) *pb.Storage {
	return &pb.Storage{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: filepath.Join(dir, "v"), Shared: true, Options: options}
}

func mkdirOption(path string) string { return optMkdir + "{{ mount 0 }}" + path }

func TestWhatIsNoStorageOfAPodIsRefused(t *testing.T) {
	const dir = "/b/sandbox"
	for name, c := range map[string]struct {
		storage *pb.Storage
		class   error
		says    string
	}{
		"outside":             {changed(sharedDisk(dir), func(s *pb.Storage) { s.MountPoint = "/b/c/rootfs" }), errdefs.ErrInvalidArgument, "/b/c/rootfs"},
		"upwards":             {changed(sharedDisk(dir), func(s *pb.Storage) { s.MountPoint = dir + "/.." }), errdefs.ErrInvalidArgument, ".."},
		"no ext4":             {changed(sharedDisk(dir), func(s *pb.Storage) { s.Fstype = "xfs" }), errdefs.ErrInvalidArgument, "xfs"},
		"no place":            {changed(sharedDisk(dir), func(s *pb.Storage) { s.Source = "../sda" }), errdefs.ErrInvalidArgument, "../sda"},
		"another driver":      {changed(sharedDisk(dir), func(s *pb.Storage) { s.Driver = "9p" }), errdefs.ErrNotImplemented, "9p"},
		"memory, no size":     {sharedMemory(dir), errdefs.ErrInvalidArgument, "size="},
		"huge pages, no size": {changed(sharedMemory(dir, "size=4096"), func(s *pb.Storage) { s.Fstype = "hugetlbfs" }), errdefs.ErrInvalidArgument, "pagesize="},
		"memory of ext4":      {changed(sharedMemory(dir, "size=4096"), func(s *pb.Storage) { s.Fstype = "ext4" }), errdefs.ErrInvalidArgument, "ext4"},
		"another option":      {sharedDisk(dir, "X-kata.overlay-upper"), errdefs.ErrNotImplemented, "overlay-upper"},
		"kernel's option":     {sharedDisk(dir, "errors=panic"), errdefs.ErrInvalidArgument, "errors=panic"},
		"a way out":           {sharedDisk(dir, mkdirOption("/a/../../b")), errdefs.ErrInvalidArgument, "leaves"},
		"another mount":       {sharedDisk(dir, optMkdir+"{{ mount 1 }}/a"), errdefs.ErrInvalidArgument, "1 mounts"},
		"fs_group":            {changed(sharedDisk(dir), func(s *pb.Storage) { s.FsGroup = &pb.FSGroup{} }), errdefs.ErrNotImplemented, "fs_group"},
	} {
		if _, err := ParseShared(dir, c.storage); !errors.Is(err, c.class) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v, want %q of class %v", name, err, c.says, c.class)
		}
	}
}

func TestAStorageOfAPodHasItsDirectoriesAndKeepsItsFiles(t *testing.T) {
	if privateMounts(t) {
		return
	}
	disks := loopDisks{"02/00": writable(t, t.TempDir())}
	dir := t.TempDir()
	for name, storage := range map[string]*pb.Storage{
		"memory": sharedMemory(dir, "size=1048576", mkdirOption("/data:2770:5:6")),
		"disk":   sharedDisk(dir, mkdirOption("/data:2770:5:6"), "discard"),
	} {
		shared, err := ParseShared(dir, storage)
		if err != nil {
			t.Fatal(err)
		}
		if err := shared.Mount(t.Context(), disks.system()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		data := filepath.Join(shared.Target, "data")
		for range 2 { // the second container finds what the first has left
			if err := shared.MakeDirs(); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Stat(data, &st); err != nil || st.Mode&0o7777 != 0o2770 || st.Uid != 5 || st.Gid != 6 {
				t.Errorf("%s: %+v, %v", name, st, err)
			}
			if err := os.WriteFile(filepath.Join(data, "kept"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := shared.Unmount(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if left := mountsBelow(t, dir); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
	shared, err := ParseShared(dir, sharedDisk(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.Mount(t.Context(), disks.system()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(shared.Target, "data"))
	if err != nil || !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "kept" }) {
		t.Errorf("the disk has %v, %v", entries, err)
	}
	if err := shared.Unmount(); err != nil {
		t.Error(err)
	}
}

// TestADirectoryBehindALinkIsNotMade: whoever has the volume may put links into it.
func TestADirectoryBehindALinkIsNotMade(t *testing.T) {
	if privateMounts(t) {
		return
	}
	dir, outside := t.TempDir(), t.TempDir()
	shared, err := ParseShared(dir, sharedMemory(dir, "size=1048576", mkdirOption("/data/sub")))
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.Mount(t.Context(), System{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := shared.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	if err := os.Symlink(outside, filepath.Join(shared.Target, "data")); err != nil {
		t.Fatal(err)
	}
	if err := shared.MakeDirs(); err == nil {
		t.Error("a link is followed")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside has %v, %v", entries, err)
	}
}
