package shim

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// allowMountsKey claims mounts from containerd 2.2 and 2.3, and is 2.4's
	// fallback (core/runtime/v2/task_mounts_deprecated.go).
	allowMountsKey = "containerd.io/runtime-allow-mounts"
	allowMounts    = "mkdir/*,format/*,erofs"

	// featuresURL is under what containerd's type registry knows
	// features.Features (core/runtime/typeurl.go).
	featuresURL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
)

// writeInfo prints what the runtime is and can do. It looks at nothing of the
// host, so that it is as good as instant and needs no KVM.
func writeInfo(out io.Writer) error {
	data, err := json.Marshal(runtimeFeatures())
	if err != nil {
		return fmt.Errorf("features: %w", err)
	}
	info, err := proto.Marshal(&types.RuntimeInfo{
		Name:        Name,
		Version:     &types.RuntimeVersion{Version: Version},
		Features:    &anypb.Any{TypeUrl: featuresURL, Value: data},
		Annotations: map[string]string{allowMountsKey: allowMounts},
	})
	if err != nil {
		return fmt.Errorf("runtime info: %w", err)
	}
	_, err = out.Write(info)
	return err
}

// runtimeFeatures promises what the guest's agent does, no more: without user
// namespaces, which CRI would offer to pods otherwise.
func runtimeFeatures() features.Features {
	no := false
	return features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: "1.3.0",
		MountOptions: []string{
			"async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "mand", "noatime", "nodev",
			"nodiratime", "noexec", "nomand", "norelatime", "nostrictatime", "nosuid", "private", "rbind", "relatime",
			"remount", "ro", "rprivate", "rro", "rrw", "rshared", "rslave", "runbindable", "rw", "shared", "slave",
			"strictatime", "suid", "sync", "unbindable",
		},
		Linux: &features.Linux{
			Namespaces: []string{"cgroup", "ipc", "mount", "network", "pid", "uts"},
			Cgroup:     &features.Cgroup{V1: &no, V2: new(true), Systemd: &no, SystemdUser: &no},
			Seccomp:    &features.Seccomp{Enabled: new(true)},
			Apparmor:   &features.Apparmor{Enabled: &no},
			Selinux:    &features.Selinux{Enabled: &no},
		},
	}
}
