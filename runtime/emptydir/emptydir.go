// Package emptydir recognises emptyDir volumes of Kubernetes among the bind mounts of
// a container, and makes the images that stand for those on disk.
//
// A volume is recognised by the path that the kubelet gives it, and what kind it is
// by what is there. The package looks at the host's files and writes nothing but the
// image, which lies in the volume's own directory: so the kubelet counts what the pod
// has written, and removes it with the volume. Functions may be called from any
// goroutine; none is started.
package emptydir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Volume is what a mount shows of an emptyDir.
type Volume struct {
	Dir string // the volume's own, on the host; names the volume
	Sub string // below it, what the mount shows; "" for all of it
	// Memory says that the medium is memory, of at most Bytes.
	Memory bool
	Bytes  int64
	// HugePage is the size in bytes of the huge pages that are the medium, 0 if they
	// are not. How many there can be the limits of the containers say.
	HugePage int64
	// Owner are owner and mode of Dir, and SubOwner those of what is mounted: what
	// the kubelet has prepared for the pod's fsGroup.
	Owner, SubOwner Owner
}

// Owner are owner and mode of a directory, the mode without the bits of its type.
type Owner struct{ UID, GID, Mode uint32 }

// HugePageName is the size of the medium's huge pages as OCI specs name it, such as
// 2MB (runtime-spec, config-linux.md, "Huge page limits").
func (v *Volume) HugePageName() string {
	switch n := v.HugePage; {
	case n >= 1<<30:
		return fmt.Sprintf("%dGB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%dMB", n>>20)
	default:
		return fmt.Sprintf("%dKB", n>>10)
	}
}

// plugin is the directory of all emptyDirs of a pod (pkg/volume/emptydir of
// Kubernetes).
const plugin = "volumes/kubernetes.io~empty-dir"

var (
	whole = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^/(.*/)?pods/[^/]+/` + plugin + `/[^/]+$`)
	})
	// part is where the kubelet mounts a subPath of a volume, by the names of volume
	// and container and a number (pkg/volume/util/subpath).
	part = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(/(?:.*/)?pods/[^/]+)/volume-subpaths/([^/]+)/[^/]+/[0-9]+$`)
	})
)

// Look says which emptyDir a bind mount with this source, an absolute path, is of;
// nil if of none.
func Look(source string) (*Volume, error) {
	source = filepath.Clean(source)
	if whole().MatchString(source) {
		return look(source, "", source)
	}
	m := part().FindStringSubmatch(source)
	if m == nil {
		return nil, nil
	}
	dir := filepath.Join(m[1], plugin, m[2])
	sub, err := subPath(dir, source)
	if sub == "" || err != nil {
		return nil, err
	}
	return look(dir, sub, source)
}

// look describes a volume. What is no directory is none.
func look(dir, sub, source string) (*Volume, error) {
	v := &Volume{Dir: dir, Sub: sub}
	var isDir bool
	var err error
	if v.Owner, isDir, err = owner(dir); err != nil || !isDir {
		return nil, err
	}
	if v.SubOwner, isDir, err = owner(source); err != nil || !isDir {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	mounted, err := mountinfo.Mounted(dir)
	if err != nil {
		return nil, fmt.Errorf("emptyDir %s: %w", dir, err)
	}
	switch {
	case int64(fs.Type) == unix.HUGETLBFS_MAGIC:
		v.HugePage = fs.Bsize // hugetlbfs_statfs in fs/hugetlbfs/inode.c
	case mounted && int64(fs.Type) == unix.TMPFS_MAGIC:
		v.Memory, v.Bytes = true, int64(fs.Blocks)*fs.Bsize
	}
	return v, nil
}

func owner(path string) (o Owner, isDir bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return o, false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return Owner{UID: st.Uid, GID: st.Gid, Mode: st.Mode & 0o7777}, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// subPath is what below dir the kubelet has mounted at source, "" if nothing of it
// is: the volume may be of another kind.
func subPath(dir, source string) (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(source))
	if err != nil {
		return "", fmt.Errorf("what is mounted at %s: %w", source, err)
	}
	if len(mounts) != 1 {
		return "", nil
	}
	// The root of the mount is a path in its filesystem: that of the volume itself,
	// or one that the volume is a directory of.
	root := mounts[0].Root
	candidates := []string{root}
	if _, below, ok := strings.Cut(root, "/"+plugin+"/"+filepath.Base(dir)+"/"); ok {
		candidates = append(candidates, below)
	}
	for _, sub := range candidates {
		sub = strings.TrimPrefix(filepath.Clean("/"+sub), "/")
		if sub != "" && same(filepath.Join(dir, sub), source) {
			return sub, nil
		}
	}
	return "", nil
}

// same says whether both are one directory.
func same(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Lstat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// ImageName is the image's name in the volume's directory.
const ImageName = ".erofsvm.img"

// Image opens the image of a volume on disk, which make makes at a path if there is
// none. One is there if the pod had another virtual machine before: its files are the
// pod's. make fails with os.ErrExist where a file is.
func (v *Volume) Image(make func(path string) (*os.File, error)) (*os.File, error) {
	path := filepath.Join(v.Dir, ImageName)
	f, err := make(path)
	if !errors.Is(err, os.ErrExist) {
		return f, err
	}
	f, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	// The directory is one that others may write to.
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (st.Mode != unix.S_IFREG|0o600 || int(st.Uid) != os.Geteuid() || st.Nlink != 1) {
		err = fmt.Errorf("%s is not the image that stands for the volume: remove it: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
