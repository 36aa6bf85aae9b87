package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
	"github.com/erofsvm/erofsvm/guest/uevent"
	"github.com/erofsvm/erofsvm/test/need"
)

// noDisks finds none, and says so.
type noDisks struct{ err error }

func (n noDisks) Find(context.Context, uevent.Disk) (string, error) { return "", n.err }

func TestAVolumeThatCouldNotBeMountedBindsNobody(t *testing.T) {
	failure := errors.New("no disk")
	s := &Sandbox{Base: t.TempDir(), System: storage.System{Disks: noDisks{failure}}}
	at := filepath.Join(s.Base, "sandbox", "v")
	for _, source := range []string{"02/00", "03/00"} { // another disk the second time
		all, err := s.parseShared([]*pb.Storage{{Driver: "blk", Source: source, Fstype: "ext4", MountPoint: at, Shared: true}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.mount(t.Context(), all); !errors.Is(err, failure) {
			t.Errorf("%s: %v", source, err)
		}
	}
	if err := s.unmount(t.Context()); err != nil {
		t.Errorf("there is nothing to unmount, and: %v", err)
	}
}

func TestVolumesAreMountedOnceAndNeverOverAnother(t *testing.T) {
	need.Root(t, "to mount")
	s := &Sandbox{Base: t.TempDir()}
	at := filepath.Join(s.Base, "sandbox", "v")
	mount := func(driver, source, fstype string, options ...string) error {
		all, err := s.parseShared([]*pb.Storage{{Driver: driver, Source: source, Fstype: fstype, MountPoint: at, Shared: true, Options: options}})
		if err != nil {
			t.Fatal(err)
		}
		return s.mount(t.Context(), all)
	}
	for _, dir := range []string{"a", "b"} {
		if err := mount("ephemeral", "tmpfs", "tmpfs", "size=1048576", "X-kata.mkdir.path={{ mount 0 }}/"+dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := mount("blk", "02/00", "ext4"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a disk in its place: %v", err)
	}
	for _, dir := range []string{"a", "b"} {
		if _, err := os.Stat(filepath.Join(at, dir)); err != nil {
			t.Error(err)
		}
	}
	if err := s.unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(at); err != nil || len(entries) != 0 {
		t.Errorf("it is still mounted: %v, %v", entries, err)
	}
}
