package storage

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

func shareStorage(tag string, options ...string) *pb.Storage {
	return &pb.Storage{Driver: "virtio-fs", Source: tag, Fstype: "virtiofs", MountPoint: "/b/c/share", Options: options}
}

// TestAShareStandsBesideTheLayers, wherever it is among the storages.
func TestAShareStandsBesideTheLayers(t *testing.T) {
	plan, err := Plan("/b", "c", []*pb.Storage{shareStorage("c1-share", "noatime"), lower("08/01")})
	if err != nil {
		t.Fatal(err)
	}
	if s := plan.Share; s == nil || s.Tag != "c1-share" || s.attrs != unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOATIME || len(s.super) != 0 {
		t.Errorf("share %+v", s)
	}
	if len(plan.Lowers) != 1 || plan.Lowers[0].Disk.Source != "08/01" {
		t.Errorf("lowers %+v", plan.Lowers)
	}
}

func TestASharePlanRefusesWhatBreaksARule(t *testing.T) {
	for name, c := range map[string]struct {
		storages []*pb.Storage
		want     error
	}{
		"two shares":         {[]*pb.Storage{shareStorage("a"), shareStorage("b")}, errdefs.ErrInvalidArgument},
		"no tag":             {[]*pb.Storage{shareStorage("")}, errdefs.ErrInvalidArgument},
		"a tag of an option": {[]*pb.Storage{shareStorage("a,dax")}, errdefs.ErrInvalidArgument},
		"a long tag":         {[]*pb.Storage{shareStorage("a23456789a123456789a123456789a1234567")}, errdefs.ErrInvalidArgument},
		"dax":                {[]*pb.Storage{shareStorage("a", "dax=always")}, errdefs.ErrInvalidArgument},
		"another type":       {[]*pb.Storage{changed(shareStorage("a"), func(s *pb.Storage) { s.Fstype = "ext4" })}, errdefs.ErrInvalidArgument},
		"another's place":    {[]*pb.Storage{changed(shareStorage("a"), func(s *pb.Storage) { s.MountPoint = "/b/d/share" })}, errdefs.ErrInvalidArgument},
		"the rootfs":         {[]*pb.Storage{changed(shareStorage("a"), func(s *pb.Storage) { s.MountPoint = "/b/c/rootfs" })}, errdefs.ErrInvalidArgument},
		"driver options":     {[]*pb.Storage{changed(shareStorage("a"), func(s *pb.Storage) { s.DriverOptions = []string{"x"} })}, errdefs.ErrNotImplemented},
	} {
		if _, err := Plan("/b", "c", append(c.storages, lower("08/01"))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
