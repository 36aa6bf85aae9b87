package guestspec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Block is a block device of the host that the container gets as a disk of the VM.
// The guest's spec has its node, with the host's numbers, for the agent to put the
// guest's in their place.
type Block struct {
	Path         string // of the node, in the container
	Major, Minor int64  // on the host
	ReadOnly     bool   // the container may not write to it
}

// block says whether a device is one that the container is to have: a block device
// that a rule of the device cgroup allows by its number. A privileged container has
// nodes of all of the host's, and a rule for everything, and is given none of them.
func (r *Result) block(d specs.LinuxDevice, rules []specs.LinuxDeviceCgroup) (bool, error) {
	if d.Type != "b" {
		return false, nil
	}
	access := allowed(d, rules)
	if !access['r'] {
		return false, nil
	}
	if !path.IsAbs(d.Path) || path.Clean(d.Path) != d.Path {
		return false, invalid("linux.devices: %q is no absolute path", d.Path)
	}
	if d.Major <= 0 || d.Minor < 0 {
		return false, invalid("linux.devices: %s has the number %d:%d", d.Path, d.Major, d.Minor)
	}
	if slices.ContainsFunc(r.Blocks, func(other Block) bool { return other.Path == d.Path }) {
		return false, invalid("linux.devices: %s is there twice", d.Path)
	}
	r.Blocks = append(r.Blocks, Block{Path: d.Path, Major: d.Major, Minor: d.Minor, ReadOnly: !access['w']})
	return true, nil
}

// allowed is what the rules that name the device by its number leave of access to it.
func allowed(d specs.LinuxDevice, rules []specs.LinuxDeviceCgroup) map[rune]bool {
	access := map[rune]bool{}
	for _, rule := range rules {
		if rule.Type != "b" || rule.Major == nil || rule.Minor == nil || *rule.Major != d.Major || *rule.Minor != d.Minor {
			continue
		}
		for _, letter := range strings.ToLower(rule.Access) {
			access[letter] = rule.Allow
		}
	}
	return access
}
