package sandboxapi

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/erofsvm/erofsvm/runtime/sandboxapi/podconfig"
)

// maxFile bounds a file of the host that the containers of a pod get a copy of,
// in bytes.
const maxFile = 1 << 20

// podConfig unpacks the options of a sandbox. Without any, it is a pod of which
// nothing is said.
func podConfig(packed *anypb.Any) (*podconfig.PodSandboxConfig, error) {
	config, err := podconfig.Unpack(packed)
	if err != nil {
		return nil, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if users := config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(); users != nil && users.GetMode() == podconfig.NamespaceMode_POD {
		return nil, fmt.Errorf("linux.security_context.namespace_options.userns_options: a user namespace is not made in the guest: the virtual machine is the boundary: %w", errdefs.ErrNotImplemented)
	}
	return config, nil
}

// hostNetwork says whether a pod is to have the network of its host.
func hostNetwork(pod *podconfig.PodSandboxConfig) bool {
	return pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == podconfig.NamespaceMode_NODE
}

// cgroup is that of a pod below the one that its kubelet has made for it, by the name
// that containerd's CRI plugin gives to that of a pause container (getCgroupsPath of
// internal/cri/server/podsandbox).
func cgroup(parent, id string) string {
	if parent == "" {
		return ""
	}
	if slice := path.Base(parent); strings.HasSuffix(slice, ".slice") {
		return slice + ":cri-containerd:" + id // for systemd
	}
	return path.Join(parent, id)
}

// writeFiles makes the files in /etc that a kubelet and its runtime keep for a
// pod, in the bundle, and returns the mounts of them. They are what containerd's
// CRI plugin makes for pods with a pause container
// (internal/cri/server/podsandbox, setupSandboxFiles).
func writeFiles(bundle, hostname string, dns *podconfig.DNSConfig) ([]specs.Mount, error) {
	hosts, err := readHost("/etc/hosts")
	if err != nil {
		return nil, err
	}
	resolv, err := resolvConf(dns)
	if err != nil {
		return nil, err
	}
	var mounts []specs.Mount
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{"hostname", []byte(hostname + "\n")}, {"hosts", hosts}, {"resolv.conf", resolv},
	} {
		file := filepath.Join(bundle, f.name)
		if err := os.WriteFile(file, f.content, 0o644); err != nil {
			return nil, fmt.Errorf("/etc/%s of the pod: %w", f.name, err)
		}
		mounts = append(mounts, specs.Mount{Destination: "/etc/" + f.name, Type: "bind", Source: file, Options: []string{"rbind"}})
	}
	return mounts, nil
}

// resolvConf is a resolv.conf(5), or that of the host if the pod says nothing of
// its own.
func resolvConf(dns *podconfig.DNSConfig) ([]byte, error) {
	if dns == nil {
		return readHost("/etc/resolv.conf")
	}
	var text strings.Builder
	for _, l := range []struct {
		word   string
		values []string
		each   bool // a line of its own
	}{
		{"search", dns.GetSearches(), false}, {"nameserver", dns.GetServers(), true}, {"options", dns.GetOptions(), false},
	} {
		for _, v := range l.values {
			if v == "" || strings.ContainsAny(v, " \t\r\n\x00") {
				return nil, fmt.Errorf("dns_config: %s %.100q: %w", l.word, v, errdefs.ErrInvalidArgument)
			}
			if l.each {
				fmt.Fprintf(&text, "%s %s\n", l.word, v)
			}
		}
		if !l.each && len(l.values) > 0 {
			fmt.Fprintf(&text, "%s %s\n", l.word, strings.Join(l.values, " "))
		}
	}
	return []byte(text.String()), nil
}

// readHost reads a small file of the host; one that is not there is empty.
func readHost(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes: %w", path, maxFile, errdefs.ErrInvalidArgument)
	}
	return content, nil
}
