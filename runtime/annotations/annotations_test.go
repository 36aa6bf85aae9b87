package annotations

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/runtime/sizing"
)

// most is the largest VM in these tests.
var most = sizing.Size{VCPUs: 8, MemoryMiB: 16384}

// allowing is a configuration that allows what matches the patterns.
func allowing(patterns ...string) configs.Config {
	c := configs.Default()
	c.Annotations.Allowed = patterns
	return c
}

func everything() configs.Config { return allowing("io.katacontainers.config*", "io.erofsvm.*") }

func TestAllowedAnnotationsSetTheirKeys(t *testing.T) {
	for _, tc := range []struct {
		name string
		pod  map[string]string
		want func(*configs.Config)
	}{
		{"none", nil, func(*configs.Config) {}},
		{"of others", map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.katacontainers.fs-opt.layer": "x", "example.org/io.erofsvm.x": "1"}, func(*configs.Config) {}},
		{"Kata's sizes", map[string]string{
			"io.katacontainers.config.hypervisor.default_vcpus":     "2",
			"io.katacontainers.config.hypervisor.default_max_vcpus": "4",
			"io.katacontainers.config.hypervisor.default_memory":    "2048",
			"io.katacontainers.config.hypervisor.default_maxmemory": "4096",
		}, func(c *configs.Config) {
			c.Hypervisor.VCPUs, c.Hypervisor.MaxVCPUs = 2, 4
			c.Hypervisor.MemoryMiB, c.Hypervisor.MaxMemoryMiB = 2048, 4096
		}},
		{"a part of a processor", map[string]string{"io.katacontainers.config.hypervisor.default_vcpus": "1.25"}, func(c *configs.Config) { c.Hypervisor.VCPUs = 2 }},
		{"less than one", map[string]string{"io.erofsvm.hypervisor.vcpus": "0.5"}, func(c *configs.Config) { c.Hypervisor.VCPUs = 1 }},
		{"no part at all", map[string]string{"io.erofsvm.hypervisor.vcpus": "8.0"}, func(c *configs.Config) { c.Hypervisor.VCPUs = 8 }},
		{"our own", map[string]string{
			"io.erofsvm.hypervisor.accelerator":  "kvm",
			"io.erofsvm.hypervisor.aio":          "io_uring",
			"io.erofsvm.hypervisor.block_driver": "virtio-scsi",
			"io.erofsvm.rootfs.layers":           "partition",
			"io.erofsvm.rootfs.memory_upper_mib": "0",
		}, func(c *configs.Config) {
			c.Hypervisor.Accelerator, c.Hypervisor.AIO, c.Hypervisor.BlockDriver = "kvm", "io_uring", "virtio-scsi"
			c.Rootfs.Layers, c.Rootfs.MemoryUpperMiB = "partition", 0
		}},
		{"Kata's network", map[string]string{
			"io.katacontainers.config.runtime.internetworking_model": "macvtap", "io.katacontainers.config.hypervisor.disable_vhost_net": "true",
		}, func(c *configs.Config) { c.Network.Model, c.Network.VhostNet = "macvtap", false }},
		{"Kata's name for the usual network", map[string]string{
			"io.katacontainers.config.runtime.internetworking_model": "tcfilter", "io.katacontainers.config.hypervisor.disable_vhost_net": "false",
		}, func(*configs.Config) {}},
		{"twice the same", map[string]string{
			"io.katacontainers.config.hypervisor.default_memory": "1024", "io.erofsvm.hypervisor.memory_mib": "1024",
		}, func(c *configs.Config) { c.Hypervisor.MemoryMiB = 1024 }},
		{"smaller than the configuration", map[string]string{"io.erofsvm.hypervisor.memory_mib": "128"}, func(c *configs.Config) { c.Hypervisor.MemoryMiB = 128 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := everything()
			want := everything()
			tc.want(&want)
			got, err := Apply(before, most, tc.pod)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%+v\nwant %+v", got, want)
			}
			if !reflect.DeepEqual(before, everything()) {
				t.Error("the configuration that came in was changed")
			}
		})
	}
}

func TestKernelParametersAreAdded(t *testing.T) {
	c := everything()
	c.Guest.KernelParams = "of=all"
	got, err := Apply(c, most, map[string]string{"io.katacontainers.config.hypervisor.kernel_params": "of=pod quiet"})
	if err != nil || got.Guest.KernelParams != "of=all of=pod quiet" {
		t.Errorf("%q, %v", got.Guest.KernelParams, err)
	}
}

func TestAnAnnotationThatIsNotHonouredFailsThePodWithItsName(t *testing.T) {
	const vcpus, memory = "io.katacontainers.config.hypervisor.default_vcpus", "io.erofsvm.hypervisor.memory_mib"
	for _, tc := range []struct {
		test, name, value string
		says              []string
	}{
		{"no processor", vcpus, "0", []string{"hypervisor.vcpus", "between 1 and 8"}},
		{"more than there can be", vcpus, "9", []string{"between 1 and 8"}},
		{"a little more than there can be", vcpus, "8.1", []string{"between 1 and 8"}},
		{"negative", vcpus, "-1", []string{"between 1 and 8"}},
		{"not a number", vcpus, "two", []string{`"two"`}},
		{"with a blank", vcpus, " 2", nil},
		{"not finite", vcpus, "inf", nil},
		{"an exponent", vcpus, "1.5e3", nil},
		{"a dot without digits", vcpus, "1.", nil},
		{"beyond any integer", memory, "99999999999999999999", nil},
		{"too little", memory, "64", []string{"between 128 and 16384"}},
		{"too much", memory, "16385", []string{"between 128 and 16384"}},
		{"with a unit", memory, "1Gi", nil},
		{"empty", memory, "", nil},
		{"less at most than to begin with", "io.erofsvm.hypervisor.max_memory_mib", "256", []string{"between 512 and 16384"}},
		{"value that is none", "io.katacontainers.config.hypervisor.block_device_aio", "posix", []string{"hypervisor.aio", "threads, io_uring"}},
		{"value that needs another", "io.katacontainers.config.hypervisor.block_device_aio", "native", []string{"hypervisor.aio", "hypervisor.cache"}},
		{"machine", "io.katacontainers.config.hypervisor.machine_type", "microvm", []string{"hypervisor.machine", "q35"}},
		{"network", "io.erofsvm.network.model", "tcfilter", []string{"network.model", "macvtap"}},
		{"network of Kata's alone", "io.katacontainers.config.runtime.internetworking_model", "l3forwarding", []string{"tcfilter, macvtap"}},
		{"neither true nor false", "io.katacontainers.config.hypervisor.disable_vhost_net", "maybe", []string{"network.vhost_net"}},
		{"slots", "io.erofsvm.hypervisor.slots", "513", []string{"between 2 and 512"}},
		{"newline", "io.erofsvm.guest.kernel_params", "a\nb", []string{"ASCII"}},
		{"too long", "io.erofsvm.guest.kernel_params", strings.Repeat("x", 2000), []string{"1024", "…"}},
		{"file of the host", "io.katacontainers.config.hypervisor.initrd", "/etc/shadow", []string{"RuntimeClass"}},
		{"configuration of the host", "io.katacontainers.config_path", "/tmp/mine.toml", []string{"RuntimeClass"}},
		{"our own name for a file", "io.erofsvm.guest.kernel", "/etc/shadow", []string{"RuntimeClass"}},
		{"what only Kata has", "io.katacontainers.config.hypervisor.virtio_fs_cache", "auto", []string{"sets nothing here"}},
		{"a typing error", "io.erofsvm.hypervisor.cpus", "2", []string{"sets nothing here"}},
		{"a key that is not for pods", "io.erofsvm.debug.trace_dir", "/tmp", []string{"sets nothing here"}},
	} {
		t.Run(tc.test, func(t *testing.T) {
			got, err := Apply(everything(), most, map[string]string{tc.name: tc.value})
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("%v is not of class invalid argument", err)
			}
			for _, w := range append(tc.says, tc.name) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q lacks %q", err, w)
				}
			}
			if len(err.Error()) > 400 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if !reflect.DeepEqual(got, configs.Config{}) {
				t.Error("there is a configuration besides the error")
			}
		})
	}
}

func TestAnAnnotationIsRefusedUnlessAPatternNamesIt(t *testing.T) {
	const name = "io.erofsvm.hypervisor.vcpus"
	for _, tc := range []struct {
		patterns []string
		ok       bool
	}{
		{nil, false},
		{[]string{name}, true},
		{[]string{"io.erofsvm.hypervisor.memory_mib", "io.erofsvm.hypervisor.*"}, true},
		{[]string{"*"}, true},
		{[]string{"vcpus"}, false},
		{[]string{"io.erofsvm.hypervisor.vcpu"}, false},
		{[]string{"hypervisor.vcpus"}, false},
		{[]string{"io.katacontainers.*"}, false},
	} {
		_, err := Apply(allowing(tc.patterns...), most, map[string]string{name: "2"})
		switch {
		case tc.ok && err != nil:
			t.Errorf("%q: %v", tc.patterns, err)
		case !tc.ok && (!errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "annotations.allowed")):
			t.Errorf("%q: %v, want a refusal of %s that names the key", tc.patterns, err, name)
		}
	}
}

func TestTheDefaultAllowsNothing(t *testing.T) {
	for _, r := range table {
		if _, err := Apply(configs.Default(), most, map[string]string{r.name: "1"}); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v", r.name, err)
		}
	}
}

func TestWhatNamesAFileOfTheHostCannotBeAllowed(t *testing.T) {
	for name := range refused {
		if _, err := Apply(allowing("*", name), most, map[string]string{name: "/bin/sh"}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTwoNamesForOneKeyMustAgree(t *testing.T) {
	_, err := Apply(everything(), most, map[string]string{
		"io.katacontainers.config.hypervisor.default_memory": "1024", "io.erofsvm.hypervisor.memory_mib": "2048",
	})
	if err == nil || !strings.Contains(err.Error(), "default_memory") || !strings.Contains(err.Error(), "memory_mib") {
		t.Errorf("%v, want both names", err)
	}
}

func TestWhatAVMBeginsWithAndCanBecomeAreCheckedTogether(t *testing.T) {
	pod := map[string]string{"io.erofsvm.hypervisor.vcpus": "4", "io.erofsvm.hypervisor.max_vcpus": "2"}
	if _, err := Apply(everything(), most, pod); err == nil || !strings.Contains(err.Error(), "max_vcpus") {
		t.Errorf("%v, want the most that is less than the least", err)
	}
	// The configuration's own limit is in most.
	c := everything()
	c.Hypervisor.MaxVCPUs = 3
	if _, err := Apply(c, sizing.Size{VCPUs: 3, MemoryMiB: 512}, map[string]string{"io.erofsvm.hypervisor.vcpus": "4"}); err == nil {
		t.Error("a pod has more processors than the configuration lets a VM have")
	}
}

func TestAPodCannotBringTheHostsKernelIn(t *testing.T) {
	c := everything()
	c.Network.VhostNet = false
	got, err := Apply(c, most, map[string]string{"io.katacontainers.config.hypervisor.disable_vhost_net": "false"})
	if err != nil || got.Network.VhostNet {
		t.Errorf("vhost-net is %v, %v", got.Network.VhostNet, err)
	}
}

func FuzzApply(f *testing.F) {
	for _, r := range table {
		f.Add(r.name, "1", "io.erofsvm.guest.kernel_params", "a b")
		f.Add(r.name, "4096", "io.katacontainers.config.hypervisor.default_max_vcpus", "2")
	}
	for name := range refused {
		f.Add(name, "/x", "x", "y")
	}
	f.Fuzz(func(t *testing.T, name, value, name2, value2 string) {
		pod := map[string]string{name: value, name2: value2}
		got, err := Apply(everything(), most, pod)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsPermissionDenied(err) {
				t.Fatalf("%v has no class", err)
			}
			return
		}
		if err := got.Validate(); err != nil {
			t.Fatalf("%q make an invalid configuration: %v", pod, err)
		}
		if h := got.Hypervisor; h.VCPUs > most.VCPUs || h.MemoryMiB > most.MemoryMiB || h.MaxVCPUs > most.VCPUs || h.MaxMemoryMiB > most.MemoryMiB {
			t.Fatalf("%q are more than there can be: %+v", pod, h)
		}
		before := everything()
		// What no annotation may touch.
		got.Hypervisor, got.Guest.KernelParams, got.Rootfs.Layers, got.Rootfs.MemoryUpperMiB =
			before.Hypervisor, before.Guest.KernelParams, before.Rootfs.Layers, before.Rootfs.MemoryUpperMiB
		got.Network.Model, got.Network.VhostNet = before.Network.Model, before.Network.VhostNet
		if !reflect.DeepEqual(got, before) {
			t.Fatalf("%q changed more than a pod may: %+v", pod, got)
		}
	})
}

func TestErrorsAreNotOfTheConfiguration(t *testing.T) {
	_, err := Apply(everything(), most, map[string]string{"io.erofsvm.hypervisor.aio": "x"})
	if errors.Is(err, configs.ErrInvalid) {
		t.Errorf("%v blames the configuration", err)
	}
}
