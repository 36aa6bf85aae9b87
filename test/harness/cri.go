package harness

import (
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// CRINamespace is containerd's namespace of everything that its CRI plugin makes.
const CRINamespace = "k8s.io"

// CRI says how containerd serves the CRI. Its files lie in the run directory, as
// all of a private containerd's.
type CRI struct {
	// Handlers are the runtime handlers, each by its name, all with the shim.
	Handlers map[string]Handler
	// Pause is the image of the pause container.
	Pause string
	// Plugins is the folder of the CNI plugins, and Network the list of those that
	// make the network of a pod; without both, pods can have that of the host only.
	Plugins string
	Network []byte
}

// Handler is one way into a pod.
type Handler struct {
	// Sandboxer is "podsandbox" or "shim".
	Sandboxer string
	// IOType is "fifo", which "" stands for, or "streaming".
	IOType string
	// ShimConfig changes the shim's configuration for this handler; nil leaves it.
	ShimConfig func(ShimConfig)
}

// criPlugins are those that a containerd needs for the CRI, of the unwanted.
var criPlugins = []string{
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
	"io.containerd.grpc.v1.cri",
	"io.containerd.image-verifier.v1.bindir", // 2.2 insists on it
	"io.containerd.nri.v1.nri",               // it wants to be there, and is switched off
	"io.containerd.podsandbox.controller.v1.podsandbox",
}

// handlerConfig is where the shim's configuration for a handler lies.
func handlerConfig(d dirs, name string) string { return filepath.Join(d.run, "shim-"+name+".toml") }

// networks is where the CNI networks lie.
func networks(d dirs) string { return filepath.Join(d.run, "cni") }

// configure adds the plugin to containerd's configuration.
func (c *CRI) configure(config table, d dirs) {
	runtimes := table{}
	for name, h := range c.Handlers {
		runtimes[name] = table{
			"runtime_type": Runtime, "snapshotter": Snapshotter, "sandboxer": h.Sandboxer, "io_type": cmp.Or(h.IOType, "fifo"),
			"privileged_without_host_devices": true,
			"options":                         table{"TypeUrl": "runtimeoptions.v1.Options", "ConfigPath": handlerConfig(d, name)},
		}
	}
	config["disabled_plugins"] = slices.DeleteFunc(slices.Clone(unwanted), func(p string) bool { return slices.Contains(criPlugins, p) })
	maps.Copy(config["plugins"].(table), table{
		"io.containerd.cri.v1.images": table{"snapshotter": Snapshotter, "pinned_images": table{"sandbox": c.Pause}},
		"io.containerd.cri.v1.runtime": table{
			"containerd": table{"default_runtime_name": slices.Min(slices.Collect(maps.Keys(c.Handlers))), "runtimes": runtimes},
			"cni": table{
				"bin_dirs": []string{cmp.Or(c.Plugins, filepath.Join(d.run, "none"))}, "conf_dir": networks(d),
			},
			"netns_mounts_under_state_dir": true,
			"disable_apparmor":             true,
		},
		"io.containerd.grpc.v1.cri": table{
			"stream_server_address": "127.0.0.1", "stream_server_port": "0",
		},
		"io.containerd.image-verifier.v1.bindir": table{"bin_dir": filepath.Join(d.run, "verifiers")},
		"io.containerd.nri.v1.nri":               table{"disable": true},
	})
}

// writeConfigs writes the shim's configurations, and that of the network.
func (c *CRI) writeConfigs(t Tree, d dirs) error {
	if c.Network != nil {
		if err := os.MkdirAll(networks(d), 0o711); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(networks(d), "10-pods.conflist"), c.Network, 0o644); err != nil {
			return err
		}
	}
	for name, h := range c.Handlers {
		config := shimConfig(t, d)
		if h.ShimConfig != nil {
			h.ShimConfig(config)
		}
		if err := config.Write(handlerConfig(d, name)); err != nil {
			return err
		}
	}
	return nil
}
