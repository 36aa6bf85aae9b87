package harness

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
)

// Snapshotter is the one whose layers the shim takes.
const Snapshotter = "erofs"

// Runtime is the name under which containerd finds the shim in PATH.
const Runtime = "io.containerd.erofsvm.v2"

// unwanted plugins would touch the host outside of the run directory (CNI, CRI,
// NRI sockets), need devices, or take start-up time.
var unwanted = []string{
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
	"io.containerd.grpc.v1.cri",
	"io.containerd.image-verifier.v1.bindir",
	"io.containerd.internal.v1.opt",
	"io.containerd.internal.v1.restart",
	"io.containerd.internal.v1.tracing",
	"io.containerd.monitor.task.v1.cgroups",
	"io.containerd.nri.v1.nri",
	"io.containerd.podsandbox.controller.v1.podsandbox",
	"io.containerd.snapshotter.v1.blockfile",
	"io.containerd.snapshotter.v1.btrfs",
	"io.containerd.snapshotter.v1.devmapper",
	"io.containerd.snapshotter.v1.native",
	"io.containerd.snapshotter.v1.zfs",
	"io.containerd.tracing.processor.v1.otlp",
}

// mkfsOptions make layers reproducible and leave their data in the order of the
// tar; containerd's documentation of the snapshotter recommends both.
var mkfsOptions = []string{"-T0", "--mkfs-time", "--sort=none"}

type table = map[string]any

// containerdConfig is the configuration of a private containerd, in version 3
// of the format, which every supported release reads.
func containerdConfig(d dirs, o Options) table {
	config := table{
		"version": 3,
		"root":    d.root,
		"state":   d.state,
		"grpc":    table{"address": d.socket},
		"ttrpc":   table{"address": d.socket + ".ttrpc"},
		"debug":   table{"level": o.LogLevel},
		// Without it a containerd that could not bring up the snapshotter runs
		// on, and the test fails far from the reason.
		"required_plugins": []string{
			"io.containerd.snapshotter.v1.erofs",
			"io.containerd.differ.v1.erofs",
			"io.containerd.mount-manager.v1.bolt",
		},
		"disabled_plugins": unwanted,
		"plugins": table{
			"io.containerd.snapshotter.v1.erofs": with(table{"default_size": o.DefaultSize}, o.Snapshotter),
			"io.containerd.differ.v1.erofs":      with(table{"mkfs_options": mkfsOptions}, o.Differ),
			"io.containerd.service.v1.diff-service": table{
				"default": []string{"erofs", "walking"},
			},
		},
	}
	if o.CRI != nil {
		o.CRI.configure(config, d)
	}
	return config
}

func with(keys, more table) table {
	maps.Copy(keys, more)
	return keys
}

// ShimConfig is the shim's configuration file as nested tables, to be changed
// before it is written.
type ShimConfig map[string]any

// Set sets a key, such as "hypervisor.memory_mib", and returns the receiver.
func (c ShimConfig) Set(section, key string, value any) ShimConfig {
	if section == "" {
		c[key] = value
		return c
	}
	sub, ok := c[section].(table)
	if !ok {
		sub = table{}
		c[section] = sub
	}
	sub[key] = value
	return c
}

// Write writes the configuration to a file.
func (c ShimConfig) Write(path string) error {
	return writeTOML(path, c)
}

// shimConfig is the configuration of a private containerd's shim. What descends from
// that containerd is found by its cgroup, which shims shall not leave unless a test
// has made another below it.
func shimConfig(t Tree, d dirs) ShimConfig {
	return BuiltConfig(t, d.sandboxes, d.cache).Set("debug", "trace_dir", d.traces).Set("host", "cgroup", "inherit")
}

// BuiltConfig points the runtime to what the tree has built. state is the
// directory of sandboxes, whose path must be short, cache that of what is kept.
func BuiltConfig(t Tree, state, cache string) ShimConfig {
	return ShimConfig{}.
		Set("", "state_dir", state).
		Set("", "cache_dir", cache).
		Set("hypervisor", "path", t.QEMU()).
		Set("guest", "kernel", t.Kernel()).
		Set("guest", "initrd", t.Initrd()).
		Set("vsock", "device_path", t.VhostDeviceVsock()).
		Set("rootfs", "mkfs_erofs", t.MkfsErofs())
}

func writeTOML(path string, value any) error {
	text, err := toml.Marshal(value)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return os.WriteFile(path, text, 0o644)
}
