package hostgroup

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups/systemd"
)

// name is a cgroup as an OCI spec names it.
type name struct {
	text string
	path string // from the root of a hierarchy
	// Of those that systemd makes: a scope, and the slice that it is in.
	unit, slice string
}

func (n name) String() string { return n.text }

// parse translates a name. Both forms are those of runc (docs/systemd.md there).
func parse(text string) (name, error) {
	bad := func(why string) (name, error) {
		return name{}, fmt.Errorf("cgroup %.200q: %s: %w", text, why, errdefs.ErrInvalidArgument)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return bad("there is a control character in it")
	}
	n := name{text: text}
	parts := strings.Split(text, ":")
	if len(parts) != 3 || strings.Contains(text, "/") {
		if n.path = filepath.Join("/", text); n.path == "/" {
			return bad("it is that of all processes of the host")
		}
		return n, nil
	}
	slice, prefix, id := parts[0], parts[1], parts[2]
	if slice == "" {
		slice = "system.slice"
	}
	if id == "" || strings.HasSuffix(id, ".slice") {
		return bad("what stands after the second colon names no scope of systemd")
	}
	dir, err := systemd.ExpandSlice(slice)
	if err != nil {
		return bad("what stands before the first colon is no slice of systemd")
	}
	n.slice, n.unit = slice, id+".scope"
	if prefix != "" {
		n.unit = prefix + "-" + n.unit
	}
	n.path = filepath.Join("/", dir, n.unit)
	return n, nil
}
