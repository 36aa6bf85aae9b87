package dropin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Effect compares what `containerd config dump` prints before the file is there
// and with it. It fails if containerd does not know the runtime then, or if
// anything has changed that is not the file's to change: that containerd merges
// files otherwise than is thought, and would start with half of its configuration,
// is not for the node to find out.
func Effect(before, after []byte, o Options) error {
	was, err := flatten(before)
	if err != nil {
		return fmt.Errorf("configuration of containerd without the drop-in: %w", err)
	}
	is, err := flatten(after)
	if err != nil {
		return fmt.Errorf("configuration of containerd with the drop-in: %w", err)
	}
	runtime := key("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes", o.Handler)
	if got := is[key(runtime, "runtime_type")]; got != Runtime {
		return fmt.Errorf("containerd does not take the runtime from the drop-in: its runtime_type is %q", got)
	}
	mine := []string{
		key("plugins", "io.containerd.cri.v1.images", "runtime_platforms", o.Handler),
		key("plugins", "io.containerd.snapshotter.v1.erofs"),
		key("plugins", "io.containerd.differ.v1.erofs"),
		key("plugins", "io.containerd.service.v1.diff-service", "default"),
		// Of files that were merged.
		"imports", "version",
	}
	// Nobody's before; what an administrator has there is not replaced.
	if unpack := key("plugins", "io.containerd.transfer.v1.local", "unpack_config"); was[unpack] == "" {
		mine = append(mine, unpack)
	}
	// Also those under another name, of a drop-in before this one.
	for k, v := range both(was, is) {
		if handler, ok := strings.CutSuffix(k, separator+"runtime_type"); ok && v == Runtime {
			mine = append(mine, handler)
		}
	}
	var others []string
	for _, k := range slices.Sorted(maps.Keys(both(was, is))) {
		ours := slices.ContainsFunc(mine, func(m string) bool { return k == m || strings.HasPrefix(k, m+separator) })
		if was[k] != is[k] && !ours {
			others = append(others, fmt.Sprintf("%s from %q to %q", strings.ReplaceAll(k, separator, "."), was[k], is[k]))
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("with the drop-in containerd also changes %s", strings.Join(others[:min(len(others), 5)], ", "))
	}
	return nil
}

// separator is in no key.
const separator = "\x00"

func key(parts ...string) string { return strings.Join(parts, separator) }

func both(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// flatten returns the values of a document by their paths.
func flatten(text []byte) (map[string]string, error) {
	var doc map[string]any
	if err := toml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	all := map[string]string{}
	var walk func(prefix string, v any)
	walk = func(prefix string, v any) {
		table, ok := v.(map[string]any)
		if !ok {
			all[prefix] = fmt.Sprint(v)
			return
		}
		for k, v := range table {
			if prefix != "" {
				k = key(prefix, k)
			}
			walk(k, v)
		}
	}
	walk("", doc)
	return all, nil
}
