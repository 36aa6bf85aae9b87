package layers

import (
	"fmt"

	"github.com/erofsvm/erofsvm/rootfs"
)

// Lower is one EROFS mount: a layer, or an index with its layers.
type Lower struct {
	Path    string
	Devices []string // of an index, the oldest layer first
	Verity  string   // metadata file of a layer with dm-verity
}

// Lowers makes a Lower of each path.
func Lowers(paths ...string) []Lower {
	all := make([]Lower, len(paths))
	for i, path := range paths {
		all[i].Path = path
	}
	return all
}

// Upper is the writable layer of a list.
type Upper struct {
	Image   string   // an ext4 image, or
	HostDir string   // a directory whose fs and work are on the host
	Mkfs    []string // options of mkfs, for an image that is still to be made
}

// Active is the list of an active snapshot, with the lowers oldest first, in
// the shape that containerd's EROFS snapshotter gives it.
func Active(upper Upper, lowers ...Lower) []rootfs.Mount {
	var mounts []rootfs.Mount
	switch {
	case upper.Mkfs != nil:
		mounts = append(mounts, rootfs.Mount{Type: "mkfs/ext4", Source: upper.Image, Options: append(upper.Mkfs, "rw", "loop")})
	case upper.Image != "":
		mounts = append(mounts, rootfs.Mount{Type: "ext4", Source: upper.Image, Options: []string{"rw", "loop"}})
	}
	first := len(mounts)
	mounts = append(mounts, erofs(lowers)...)
	if len(lowers) == 0 {
		return append(mounts, rootfs.Mount{Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper", Options: []string{
			"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "rw", "rbind",
		}})
	}
	options := []string{"workdir=" + upper.HostDir + "/work", "upperdir=" + upper.HostDir + "/fs"}
	if upper.HostDir == "" {
		options = []string{
			"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
			"workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper",
		}
	}
	return append(mounts, rootfs.Mount{
		Type: "format/mkdir/overlay", Source: "overlay", Options: append(options, "lowerdir="+lowerdir(first, len(lowers))),
	})
}

// View is the list of a read-only view of at least one lower, oldest first.
func View(lowers ...Lower) []rootfs.Mount {
	mounts := erofs(lowers)
	if len(lowers) == 1 {
		return append(mounts, rootfs.Mount{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rbind"}})
	}
	return append(mounts, rootfs.Mount{Type: "format/overlay", Source: "overlay", Options: []string{"lowerdir=" + lowerdir(0, len(lowers))}})
}

func erofs(lowers []Lower) []rootfs.Mount {
	var mounts []rootfs.Mount
	for _, l := range reversed(lowers) {
		m := rootfs.Mount{Type: "erofs", Source: l.Path, Options: []string{"ro", "loop"}}
		for _, d := range l.Devices {
			m.Options = append(m.Options, "device="+d)
		}
		if l.Verity != "" {
			m.Options = append(m.Options, "X-containerd.dmverity="+l.Verity)
		}
		mounts = append(mounts, m)
	}
	return mounts
}

// lowerdir names n mounts from first on, the topmost first.
func lowerdir(first, n int) string {
	if n == 1 {
		return fmt.Sprintf("{{ mount %d }}", first)
	}
	return fmt.Sprintf("{{ overlay %d %d }}", first, first+n-1)
}
