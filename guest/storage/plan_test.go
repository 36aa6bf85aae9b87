package storage

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

func upper(options ...string) *pb.Storage {
	return &pb.Storage{Driver: "blk", Source: "08/00", Fstype: "ext4", MountPoint: "/b/c/rootfs",
		Options: append([]string{"rw", optUpper, optMultiLayer}, options...)}
}

func lower(source string, options ...string) *pb.Storage {
	return &pb.Storage{Driver: "blk", Source: source, Fstype: "erofs", MountPoint: "/b/c/rootfs",
		Options: append([]string{"ro", optLower, optMultiLayer}, options...)}
}

func changed(s *pb.Storage, change func(*pb.Storage)) *pb.Storage {
	change(s)
	return s
}

func TestPlanOrdersLayers(t *testing.T) {
	plan, err := Plan("/b", "c", []*pb.Storage{
		lower("08/01"),
		upper(optMkdir+"{{ mount 1 }}/upper:0700:1:2", optMkdir+"{{ mount 2 }}/x"),
		lower("08/02"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if plan.Upper == nil || plan.Upper.Disk.Source != "08/00" || plan.Upper.ReadOnly() {
		t.Errorf("upper %+v", plan.Upper)
	}
	if len(plan.Lowers) != 2 || plan.Lowers[0].Disk.Source != "08/01" || plan.Lowers[1].Disk.Source != "08/02" || !plan.Lowers[0].ReadOnly() {
		t.Errorf("lowers %+v", plan.Lowers)
	}
	// "mount 1" is the upper storage as it came, which is layer 0.
	want := []Mkdir{
		{Layer: 0, Path: []string{"upper"}, Mode: 0o700, UID: 1, GID: 2},
		{Layer: 2, Path: []string{"x"}, Mode: 0o755, UID: -1, GID: -1},
	}
	if !reflect.DeepEqual(plan.Mkdirs, want) {
		t.Errorf("mkdirs %+v, want %+v", plan.Mkdirs, want)
	}
}

func TestPlanRefusesWhatBreaksARule(t *testing.T) {
	many := []*pb.Storage{upper()}
	for range maxLowers + 1 {
		many = append(many, lower("08/01"))
	}
	for name, c := range map[string]struct {
		storages []*pb.Storage
		class    error
		says     string
	}{
		"nothing":                        {nil, errdefs.ErrInvalidArgument, "no lower layer"},
		"no lower":                       {[]*pb.Storage{upper()}, errdefs.ErrInvalidArgument, "no lower layer"},
		"two uppers":                     {[]*pb.Storage{upper(), upper(), lower("08/01")}, errdefs.ErrInvalidArgument, "storage 1: a second upper"},
		"too many lowers":                {many, errdefs.ErrInvalidArgument, "501 lower layers"},
		"both roles":                     {[]*pb.Storage{upper(optLower)}, errdefs.ErrInvalidArgument, "want one of the options"},
		"no role":                        {[]*pb.Storage{{Driver: "blk", Fstype: "erofs", MountPoint: "/b/c/rootfs", Options: []string{optMultiLayer}}}, errdefs.ErrInvalidArgument, "want one of the options"},
		"not multi-layer":                {[]*pb.Storage{{Driver: "blk", Fstype: "erofs", MountPoint: "/b/c/rootfs", Options: []string{optLower}}}, errdefs.ErrNotImplemented, optMultiLayer},
		"other driver":                   {[]*pb.Storage{changed(lower("08/01"), func(s *pb.Storage) { s.Driver = "9p" })}, errdefs.ErrNotImplemented, `"9p"`},
		"other mount point":              {[]*pb.Storage{changed(lower("08/01"), func(s *pb.Storage) { s.MountPoint = "/b/c/../../etc" })}, errdefs.ErrInvalidArgument, "want /b/c/rootfs"},
		"upper of erofs":                 {[]*pb.Storage{changed(upper(), func(s *pb.Storage) { s.Fstype = "erofs" })}, errdefs.ErrInvalidArgument, "want ext4"},
		"lower of ext4":                  {[]*pb.Storage{changed(lower("08/01"), func(s *pb.Storage) { s.Fstype = "ext4" })}, errdefs.ErrInvalidArgument, "want erofs"},
		"read-only upper":                {[]*pb.Storage{changed(upper(), func(s *pb.Storage) { s.Options[0] = "ro" }), lower("08/01")}, errdefs.ErrInvalidArgument, "option ro on an upper"},
		"the same disk twice":            {[]*pb.Storage{lower("08/01"), lower("08/01")}, errdefs.ErrInvalidArgument, "disk 08/01 is two layers"},
		"one disk up and low":            {[]*pb.Storage{upper(), lower("08/00")}, errdefs.ErrInvalidArgument, "disk 08/00 is two layers"},
		"no PCI path":                    {[]*pb.Storage{lower("/dev/vda")}, errdefs.ErrInvalidArgument, "PCI path"},
		"no SCSI address":                {[]*pb.Storage{changed(lower("08/01"), func(s *pb.Storage) { s.Driver = "scsi" })}, errdefs.ErrInvalidArgument, "<target>:<unit>"},
		"second device":                  {[]*pb.Storage{lower("08/01", "device=/dev/vda")}, errdefs.ErrInvalidArgument, "device="},
		"driver options":                 {[]*pb.Storage{changed(lower("08/01"), func(s *pb.Storage) { s.DriverOptions = []string{"x"} })}, errdefs.ErrNotImplemented, "driver_options"},
		"mkdir of no mount":              {[]*pb.Storage{upper(optMkdir + "{{ mount 2 }}/x"), lower("08/01")}, errdefs.ErrInvalidArgument, "there are 2 mounts"},
		"mkdir out of it":                {[]*pb.Storage{upper(optMkdir + "{{ mount 0 }}/a/../../x"), lower("08/01")}, errdefs.ErrInvalidArgument, "leaves its mount"},
		"mkdir without mount":            {[]*pb.Storage{upper(optMkdir + "/etc/x"), lower("08/01")}, errdefs.ErrInvalidArgument, "want {{ mount N }}"},
		"mkdir of the mount":             {[]*pb.Storage{upper(optMkdir + "{{ mount 0 }}/./"), lower("08/01")}, errdefs.ErrInvalidArgument, "mount itself"},
		"mkdir with a mode that is none": {[]*pb.Storage{upper(optMkdir + "{{ mount 0 }}/x:999"), lower("08/01")}, errdefs.ErrInvalidArgument, "want {{ mount N }}"},
		"mkdir with half an owner":       {[]*pb.Storage{upper(optMkdir + "{{ mount 0 }}/x:0755:1"), lower("08/01")}, errdefs.ErrInvalidArgument, "want {{ mount N }}"},
		"mkdir with a huge owner":        {[]*pb.Storage{upper(optMkdir + "{{ mount 0 }}/x:0755:4294967295:0"), lower("08/01")}, errdefs.ErrInvalidArgument, "owner"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Plan("/b", "c", c.storages)
			if !errors.Is(err, c.class) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("%v, want %q of class %v", err, c.says, c.class)
			}
		})
	}
}

func TestIDsAreNames(t *testing.T) {
	for _, id := range []string{"a", "0", "redis-1_x.y", strings.Repeat("a", 128)} {
		if err := CheckID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"", ".", "..", "-a", "_a", "a/b", "a\n", "a\x00", "ä", strings.Repeat("a", 129)} {
		if err := CheckID(id); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestOptionsPassByName(t *testing.T) {
	o, err := ParseOptions("ext4", []string{"ro", "nosuid", "nodev", "noatime", "dev", "data=ordered", "commit=30"})
	if err != nil {
		t.Fatal(err)
	}
	if want := unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOATIME; o.attrs != want {
		t.Errorf("attributes %#x, want %#x", o.attrs, want)
	}
	if got := strings.Join(o.super, " "); got != "ro data=ordered commit=30" {
		t.Errorf("options %q", got)
	}
	for _, c := range [][]string{
		{"ext4", "rw", "discard", "norelatime"}, {"ext4", "nodiscard", "lazytime"}, {"erofs", "ro", "lazytime"}, {"tmpfs", "size=67108864", "mode=0755"},
	} {
		if _, err := ParseOptions(c[0], c[1:]); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
	for _, c := range [][]string{
		{"ext4", "errors=panic"}, {"ext4", "journal_path=/dev/vdb"}, {"ext4", "journal_dev=1"}, {"ext4", "data=ordered\n"}, {"ext4", "ro", "rw"},
		{"erofs", "device=/dev/vdb"}, {"erofs", "fsoffset=512"}, {"erofs", "loop"}, {"erofs", ""}, {"xfs", "wsync"},
		{"tmpfs", "size=50%"}, {"tmpfs", "size=0"}, {"tmpfs", "mpol=bind:0"}, {"tmpfs", "huge=always"},
	} {
		if _, err := ParseOptions(c[0], c[1:]); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// FuzzPlan holds whatever arrives to the promises that the mount code needs: a
// plan that is accepted has only names as steps, known layers, disks that could
// be, protection that is whole, and memory that is bounded.
func FuzzPlan(f *testing.F) {
	for _, mkdir := range []string{"{{ mount 0 }}/upper:0755", "{{ mount 1 }}/a/../b:07777:1:2", "{{mount 0}}/x", "/../x", "{{ mount 0 }}//:"} {
		f.Add("c", "blk", "08/00", "ext4", "rw", mkdir, "blk", "08/01", "ro")
	}
	f.Add("c", "ephemeral", "tmpfs", "tmpfs", "size=4096", "{{ mount 0 }}/upper", "scsi", "1:2", optPartitioned+"\n"+optPartition+"7")
	f.Add("c", "scsi", "0:0", "ext4", "discard", "{{ mount 0 }}/upper", "blk", "08/01", optVerity+"\n"+optVerityRoot+someHash+"\n"+optVerityOffset+"4096")
	f.Fuzz(func(t *testing.T, id, upperDriver, upperSource, fstype, upperOptions, mkdir, driver, source, lowerOptions string) {
		s := upper(append(strings.Split(upperOptions, "\n"), optMkdir+mkdir)...)
		s.Driver, s.Source, s.Fstype, s.MountPoint = upperDriver, upperSource, fstype, RootfsPath("/b", id)
		l := lower(source, strings.Split(lowerOptions, "\n")...)
		l.Driver, l.MountPoint = driver, s.MountPoint
		plan, err := Plan("/b", id, []*pb.Storage{s, l})
		if err != nil {
			return
		}
		if strings.ContainsAny(plan.ID, "/\x00") || plan.ID == ".." {
			t.Errorf("id %q", plan.ID)
		}
		for _, d := range plan.Mkdirs {
			if d.Layer < 0 || d.Layer > 1 || len(d.Path) == 0 || d.Mode > 0o7777 {
				t.Errorf("%+v", d)
			}
			for _, name := range d.Path {
				if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
					t.Errorf("%+v", d)
				}
			}
		}
		for _, l := range plan.layers("/b") {
			if l.inMemory() && !strings.Contains(strings.Join(l.super, " "), "size=") {
				t.Errorf("memory without a bound: %+v", l)
			}
			if !l.inMemory() && l.Disk.Check() != nil {
				t.Errorf("%+v: %v", l.Disk, l.Disk.Check())
			}
			if v := l.Verity; v != nil && (!isRootHash(v.RootHash) || v.HashOffset == 0) {
				t.Errorf("%+v", v)
			}
		}
		// A word about a hash tree is never dropped.
		if strings.Contains(lowerOptions, "dmverity") && plan.Lowers[0].Verity == nil {
			t.Errorf("%q leaves the layer unprotected", lowerOptions)
		}
	})
}
