package rootfs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Options that containerd's transforms and mount handlers read; none of them
// reaches a kernel.
const (
	optMkdirPrefix = "X-containerd.mkdir."
	optMkdirPath   = optMkdirPrefix + "path="
	optMkfsPrefix  = "X-containerd.mkfs."
	optVerity      = "X-containerd.dmverity="
	optLoop        = "loop"
	optDevice      = "device="
)

// Options of the agent protocol that say what a storage is to the rootfs.
const (
	agentMultiLayer = "X-kata.multi-layer=true"
	agentUpper      = "X-kata.overlay-upper"
	agentLower      = "X-kata.overlay-lower"
	agentMkdirPath  = "X-kata.mkdir.path="

	agentPartitioned = "X-kata.gpt-partitioned=true"
	agentPartition   = "X-kata.partition-number="

	agentVerity       = "X-kata.dmverity-enabled=true"
	agentVerityRoot   = "X-kata.dmverity.roothash="
	agentVerityOffset = "X-kata.dmverity.hashoffset="
)

// What the guest mounts with, as far as it comes from the list. Anything else
// is refused: an option may change what a file contains or who may read it,
// and the guest cannot tell which.
var (
	timeOptions  = []string{"noatime", "nodiratime", "relatime", "norelatime", "strictatime", "lazytime"}
	ext4Options  = append([]string{"rw", "discard", "nodiscard"}, timeOptions...)
	erofsOptions = append([]string{"ro"}, timeOptions...)

	// overlayIgnored change how the host's overlay would behave and not what
	// is seen through it; the guest's overlay has its own.
	overlayIgnored = []string{"index=off", "volatile", "xino=off", "xino=on", "xino=auto"}
)

// Mkdir is a directory to be there before the overlay is mounted.
type Mkdir struct {
	Path string // below the mount point of the upper layer, with a leading slash
	Mode uint32 // permission bits
	// UID and GID own the directory; -1 leaves them to the guest.
	UID, GID int64
}

// agentOption is the directive in the words of the agent protocol, where
// storage 0 is the upper layer.
func (m Mkdir) agentOption() string {
	s := fmt.Sprintf("%s{{ mount 0 }}%s:%04o", agentMkdirPath, m.Path, m.Mode)
	if m.UID >= 0 {
		s += fmt.Sprintf(":%d:%d", m.UID, m.GID)
	}
	return s
}

// defaultMkdirMode is what containerd takes where a directive has no mode
// (core/mount/manager/mkdir.go).
const defaultMkdirMode = 0o700

// splitMkdir takes path[:mode[:uid:gid]] apart. The path is still a template.
func splitMkdir(value string) (path string, m Mkdir, err error) {
	parts := strings.Split(value, ":")
	m = Mkdir{Mode: defaultMkdirMode, UID: -1, GID: -1}
	switch len(parts) {
	case 4:
		uid, err := strconv.ParseUint(parts[2], 10, 31)
		if err != nil {
			return "", m, fmt.Errorf("user %s is not a number", printable(parts[2]))
		}
		gid, err := strconv.ParseUint(parts[3], 10, 31)
		if err != nil {
			return "", m, fmt.Errorf("group %s is not a number", printable(parts[3]))
		}
		m.UID, m.GID = int64(uid), int64(gid)
		fallthrough
	case 2:
		mode, err := strconv.ParseUint(parts[1], 8, 32)
		if err != nil || mode > 0o777 {
			return "", m, fmt.Errorf("mode %s is not an octal number up to 0777", printable(parts[1]))
		}
		m.Mode = uint32(mode)
		fallthrough
	case 1:
		return parts[0], m, nil
	}
	return "", m, fmt.Errorf("has %d parts, wants path[:mode[:uid:gid]]", len(parts))
}

// guestOptions keeps those options of an ext4 or erofs mount that the guest
// mounts with. taken says which options the caller reads itself.
func guestOptions(options, allowed []string, taken func(string) bool) (kept []string, unknown string) {
	for _, o := range options {
		switch {
		case o == optLoop || taken(o):
		case slices.Contains(allowed, o):
			if !slices.Contains(kept, o) {
				kept = append(kept, o)
			}
		default:
			return nil, o
		}
	}
	return kept, ""
}
