// Package annotations lets a pod change the configuration of its own VM: as many
// processors, as much memory, as its annotations ask for, where the
// administrator has allowed it.
//
// It is a pure function over plain data: nothing is read, started or kept, what
// comes in is not changed, and any goroutine may call it. It never lets an
// annotation name a file of the host, and never ignores one of its names: what
// is not honoured is refused. Which VM a configuration is for is for the caller
// to know. The table of docs/annotations.md says what each annotation sets; a
// test holds both together.
package annotations

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/runtime/sizing"
)

// What annotations are called that are for this package. The first has no dot at
// its end: io.katacontainers.config_path is one of them.
const (
	kata = "io.katacontainers.config"
	own  = "io.erofsvm."
)

// maxShown is how much of a value an error repeats, in bytes: it reaches the
// events of the pod.
const maxShown = 64

// Apply returns the configuration of a VM for a pod with these annotations. most
// is the largest VM that an annotation may ask for, at least as large as c has it
// begin. Annotations of other names are left alone. An error is of class
// errdefs.ErrPermissionDenied for an annotation that c.Annotations does not
// allow and errdefs.ErrInvalidArgument for any other, and names it.
func Apply(c configs.Config, most sizing.Size, pod map[string]string) (configs.Config, error) {
	for _, name := range slices.Sorted(maps.Keys(pod)) {
		if err := admit(c, name); err != nil {
			return configs.Config{}, err
		}
	}
	s := state{config: c, most: most}
	setBy := map[string]string{}
	for _, r := range table {
		value, ok := pod[r.name]
		if !ok {
			continue
		}
		if first, twice := setBy[r.key]; twice && pod[first] != value {
			return configs.Config{}, fmt.Errorf("annotations %s and %s both set %s: remove one: %w", first, r.name, r.key, errdefs.ErrInvalidArgument)
		} else if twice {
			continue
		}
		setBy[r.key] = r.name
		if err := s.apply(r, value); err != nil {
			return configs.Config{}, fmt.Errorf("annotation %s = %s: %w: %w", r.name, shown(value), err, errdefs.ErrInvalidArgument)
		}
	}
	return s.config, nil
}

// admit says whether an annotation may be there.
func admit(c configs.Config, name string) error {
	if !strings.HasPrefix(name, kata) && !strings.HasPrefix(name, own) {
		return nil
	}
	if reason, ok := refused[name]; ok {
		return fmt.Errorf("annotation %s: %s: %w", name, reason, errdefs.ErrInvalidArgument)
	}
	if !slices.ContainsFunc(table, func(r row) bool { return r.name == name }) {
		return fmt.Errorf("annotation %s sets nothing here: remove it from the pod, or see docs/annotations.md for those that do: %w",
			shownName(name), errdefs.ErrInvalidArgument)
	}
	for _, pattern := range c.Annotations.Allowed {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			return nil
		}
	}
	return fmt.Errorf("annotation %s is not allowed: remove it from the pod, or add it to annotations.allowed in the configuration of the runtime: %w",
		name, errdefs.ErrPermissionDenied)
}

// shown quotes a value for an error.
func shown(value string) string {
	if len(value) > maxShown {
		return fmt.Sprintf("%q…", value[:maxShown])
	}
	return fmt.Sprintf("%q", value)
}

// shownName is a name of somebody else's choosing, in an error.
func shownName(name string) string { return strings.Trim(shown(name), `"`) }
