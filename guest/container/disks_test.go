package container

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
	"github.com/erofsvm/erofsvm/guest/uevent"
	"github.com/erofsvm/erofsvm/test/need"
)

// nodes finds devices of the host in the place of disks, and whatever is at those
// paths; "late" does not come.
type nodes map[string]string

func (n nodes) Find(ctx context.Context, d uevent.Disk) (string, error) {
	if node, ok := n[d.String()]; ok {
		return node, nil
	}
	return "", context.DeadlineExceeded
}

type noModules struct{ asked []string }

func (m *noModules) Load(_ context.Context, stage string) error {
	m.asked = append(m.asked, stage)
	return nil
}

func block(path string, major, minor int64) specs.LinuxDevice {
	return specs.LinuxDevice{Path: path, Type: "b", Major: major, Minor: minor}
}

func rule(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access}
}

// blockNode returns a block device of this machine and its number.
func blockNode(t *testing.T, path string) number {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		need.Missing(t, "%s is no block device: %v", path, err)
	}
	return number{int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))}
}

// TestBlockDevicesHaveTheGuestsNumbers, and so have the rules for them, even where
// one has the number of the other's on the host.
func TestBlockDevicesHaveTheGuestsNumbers(t *testing.T) {
	a, b := blockNode(t, "/dev/loop0"), blockNode(t, "/dev/loop1")
	wild := specs.LinuxDeviceCgroup{Allow: true, Type: "b", Access: "m"}
	spec := &specs.Spec{Linux: &specs.Linux{
		Devices: []specs.LinuxDevice{
			{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, block("/dev/xda", b.major, b.minor), block("/dev/xdb", 8, 16), block("/dev/xdc", a.major, a.minor),
		},
		Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
			{Access: "rwm"}, wild, rule("b", b.major, b.minor, "rwm"), rule("b", 8, 16, "r"), rule("c", 8, 16, "rw"), rule("b", 8, 17, "rw"),
		}},
	}}
	modules := &noModules{}
	system := storage.System{Disks: nodes{"02/00": "/dev/loop0", "scsi 0:1": "/dev/loop1"}, Modules: modules}
	err := giveDisks(t.Context(), spec, []*pb.Device{
		{Id: "02/00", Type: "blk", ContainerPath: "/dev/xda"}, {Id: "0:1", Type: "scsi", ContainerPath: "/dev/xdb"},
	}, system)
	if err != nil {
		t.Fatal(err)
	}
	wantDevices := []specs.LinuxDevice{
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, block("/dev/xda", a.major, a.minor), block("/dev/xdb", b.major, b.minor), block("/dev/xdc", a.major, a.minor),
	}
	if !reflect.DeepEqual(spec.Linux.Devices, wantDevices) {
		t.Errorf("devices %+v", spec.Linux.Devices)
	}
	wantRules := []specs.LinuxDeviceCgroup{
		{Access: "rwm"}, wild, rule("b", a.major, a.minor, "rwm"), rule("b", b.major, b.minor, "r"), rule("c", 8, 16, "rw"), rule("b", 8, 17, "rw"),
	}
	if !reflect.DeepEqual(spec.Linux.Resources.Devices, wantRules) {
		t.Errorf("rules %v", spec.Linux.Resources.Devices)
	}
	if !slices.Equal(modules.asked, []string{"scsi"}) {
		t.Errorf("loaded %q", modules.asked)
	}
}

func TestDevicesThatCannotBeAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		device *pb.Device
		class  func(error) bool
		says   string
	}{
		"not in the specification": {&pb.Device{Id: "02/00", Type: "blk", ContainerPath: "/dev/other"}, errdefs.IsInvalidArgument, "/dev/other"},
		"a character device":       {&pb.Device{Id: "02/00", Type: "blk", ContainerPath: "/dev/null"}, errdefs.IsInvalidArgument, "/dev/null"},
		"no place":                 {&pb.Device{Id: "/dev/sda", Type: "blk", ContainerPath: "/dev/xda"}, errdefs.IsInvalidArgument, "/dev/sda"},
		"another driver":           {&pb.Device{Id: "02/00", Type: "vfio", ContainerPath: "/dev/xda"}, errdefs.IsNotImplemented, "vfio"},
		"a path of the VM":         {&pb.Device{Id: "02/00", Type: "blk", VmPath: "/dev/vda", ContainerPath: "/dev/xda"}, errdefs.IsNotImplemented, "vm_path"},
		"late":                     {&pb.Device{Id: "09/00", Type: "blk", ContainerPath: "/dev/xda"}, func(err error) bool { return err != nil }, "/dev/xda"},
	} {
		spec := &specs.Spec{Linux: &specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/null", Type: "c"}, block("/dev/xda", 8, 0)}}}
		err := giveDisks(t.Context(), spec, []*pb.Device{c.device}, storage.System{Disks: nodes{}})
		if !c.class(err) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	spec := &specs.Spec{Linux: &specs.Linux{Devices: []specs.LinuxDevice{block("/dev/xda", 8, 0)}}}
	twice := []*pb.Device{{Id: "02/00", Type: "blk", ContainerPath: "/dev/xda"}, {Id: "03/00", Type: "blk", ContainerPath: "/dev/xda"}}
	blockNode(t, "/dev/loop0")
	if err := giveDisks(t.Context(), spec, twice, storage.System{Disks: nodes{"02/00": "/dev/loop0", "03/00": "/dev/loop0"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("twice: %v", err)
	}
}
