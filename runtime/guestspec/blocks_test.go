package guestspec

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func deviceRule(allow bool, kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: &major, Minor: &minor, Access: access}
}

var (
	nothing    = specs.LinuxDeviceCgroup{Access: "rwm"}
	everything = specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"}
)

func TestABlockDeviceIsADiskIfARuleNamesIt(t *testing.T) {
	for name, c := range map[string]struct {
		rules          []specs.LinuxDeviceCgroup
		want, readOnly bool
	}{
		"as containerd writes it": {[]specs.LinuxDeviceCgroup{nothing, deviceRule(true, "b", 7, 0, "rwm")}, true, false},
		"read-only":               {[]specs.LinuxDeviceCgroup{nothing, deviceRule(true, "b", 7, 0, "rm")}, true, true},
		"in two rules":            {[]specs.LinuxDeviceCgroup{deviceRule(true, "b", 7, 0, "r"), deviceRule(true, "b", 7, 0, "w")}, true, false},
		"taken back":              {[]specs.LinuxDeviceCgroup{deviceRule(true, "b", 7, 0, "rw"), deviceRule(false, "b", 7, 0, "w")}, true, true},
		"without reading":         {[]specs.LinuxDeviceCgroup{deviceRule(true, "b", 7, 0, "wm")}, false, false},
		"of a privileged one":     {[]specs.LinuxDeviceCgroup{nothing, everything}, false, false},
		"of another device":       {[]specs.LinuxDeviceCgroup{nothing, deviceRule(true, "b", 7, 1, "rwm")}, false, false},
		"of another kind":         {[]specs.LinuxDeviceCgroup{nothing, deviceRule(true, "c", 7, 0, "rwm")}, false, false},
		"none":                    {nil, false, false},
	} {
		s := load(t, "ctr.json")
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/xda", Type: "b", Major: 7, Minor: 0}}
		s.Linux.Resources.Devices = c.rules
		r, err := Convert(s, options)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var want []Block
		if c.want {
			want = []Block{{Path: "/dev/xda", Major: 7, Minor: 0, ReadOnly: c.readOnly}}
		}
		if !slices.Equal(r.Blocks, want) || (len(r.Spec.GetLinux().GetDevices()) == 1) != c.want || len(r.Dropped) == 0 == !c.want {
			t.Errorf("%s: %v, nodes %v, dropped %q", name, r.Blocks, r.Spec.GetLinux().GetDevices(), r.Dropped)
		}
	}
}

func TestABlockDeviceThatCannotBeIsRefused(t *testing.T) {
	for name, devices := range map[string][]specs.LinuxDevice{
		"relative": {{Path: "dev/xda", Type: "b", Major: 7}},
		"upwards":  {{Path: "/dev/../xda", Type: "b", Major: 7}},
		"twice":    {{Path: "/dev/xda", Type: "b", Major: 7}, {Path: "/dev/xda", Type: "b", Major: 7}},
	} {
		s := load(t, "ctr.json")
		s.Linux.Devices = devices
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{deviceRule(true, "b", 7, 0, "rwm")}
		if r, err := Convert(s, options); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, %v", name, r.Blocks, err)
		}
	}
}
