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

// sysctlName is a path below net/ in /proc/sys, with slashes.
var sysctlName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^net(/[A-Za-z0-9_-][A-Za-z0-9_.@:-]*)+$`)
})

// setGuestSysctls sets the values of net.* for a container without a network of
// its own below dir, and takes them out of spec. The guest's network is that of
// the pod alone, so they are the pod's to set; libcontainer would refuse them,
// as it takes the network of its own process for that of a host.
func setGuestSysctls(dir string, spec *specs.Spec) error {
	if hasNamespace(spec, specs.NetworkNamespace) {
		return nil
	}
	rest := map[string]string{}
	for name, value := range spec.Linux.Sysctl {
		path := sysctlPath(name)
		if path != "net" && !strings.HasPrefix(path, "net/") {
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
