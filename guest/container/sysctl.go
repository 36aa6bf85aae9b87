package container

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func hasNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return spec.Linux != nil && slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

// sysctlName is a path in /proc/sys below what a namespace has, with slashes.
var sysctlName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(net|kernel|fs/mqueue)(/[A-Za-z0-9_-][A-Za-z0-9_.@:-]*)+$`)
})

// ipcSysctls are those of an ipc namespace, besides fs/mqueue (sysctl/kernel.rst
// and fs.rst of the kernel).
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
}

// namespaceOf is the kind of namespace that a sysctl is of, "" for others than
// the two that are a pod's.
func namespaceOf(path string) specs.LinuxNamespaceType {
	switch {
	case path == "net" || strings.HasPrefix(path, "net/"):
		return specs.NetworkNamespace
	case slices.Contains(ipcSysctls, path) || strings.HasPrefix(path, "fs/mqueue/"):
		return specs.IPCNamespace
	}
	return ""
}

// setGuestSysctls sets the values of a container that are those of a network or
// of an ipc namespace which it has not made for itself, below dir, and takes them
// out of spec. The guest's own are those of the pod alone, so they are the pod's
// to set; libcontainer would refuse them, as it takes the namespaces of its own
// process for those of a host.
func setGuestSysctls(dir string, spec *specs.Spec) error {
	rest := map[string]string{}
	for name, value := range spec.Linux.Sysctl {
		path := sysctlPath(name)
		kind := namespaceOf(path)
		if kind == "" || hasNamespace(spec, kind) {
			rest[name] = value
			continue
		}
		if !sysctlName().MatchString(path) || len(value) > 4096 {
			return fmt.Errorf("OCI.Linux.Sysctl %.128q: %w", name, errdefs.ErrInvalidArgument)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl %s to %.128q: %w", name, value, err)
		}
	}
	spec.Linux.Sysctl = rest
	return nil
}

// sysctlPath turns a name of sysctl(8) into a path below /proc/sys. Whichever of
// dot and slash comes first is the separator, and the other is a dot in a name.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}
