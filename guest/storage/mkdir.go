package storage

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/token"
)

// Mkdir asks for a directory inside one of the layers.
type Mkdir struct {
	Layer    int      // 0 the upper layer, if there is one, then the lowers
	Path     []string // names from the root of the layer down
	Mode     uint32   // permission bits, of directories that are made
	UID, GID int      // owner of directories that are made; -1 leaves it
}

// directive is "{{ mount N }}/path[:mode[:uid:gid]]", in its parts. A path has no
// colon and nothing else to unquote.
type directive struct {
	layer, path, mode, uid, gid string // the last three may be ""
}

// readDirective holds text to that form; what its numbers mean is the caller's.
func readDirective(text string) (d directive, ok bool) {
	rest, ok := strings.CutPrefix(text, "{{")
	if !ok {
		return d, false
	}
	rest, ok = strings.CutPrefix(strings.TrimPrefix(rest, " "), "mount ")
	if !ok {
		return d, false
	}
	d.layer, rest, ok = strings.Cut(rest, "}}")
	d.layer = strings.TrimSuffix(d.layer, " ")
	if !ok || !token.Of(d.layer, 1, 3, token.Digit) {
		return d, false
	}
	path, owner, has := strings.Cut(rest, ":")
	d.path = path
	if len(path) < 2 || path[0] != '/' || strings.IndexByte(path, 0) >= 0 {
		return d, false
	}
	if !has {
		return d, true
	}
	d.mode, owner, has = strings.Cut(owner, ":")
	if !token.Of(d.mode, 3, 4, token.Octal) {
		return d, false
	}
	if !has {
		return d, true
	}
	d.uid, d.gid, has = strings.Cut(owner, ":")
	return d, has && token.Of(d.uid, 1, 10, token.Digit) && token.Of(d.gid, 1, 10, token.Digit)
}

// maxMkdirs bounds what one request can make.
const maxMkdirs = 64

func resolveMkdirs(roles []role) ([]Mkdir, error) {
	var dirs []Mkdir
	order := mountOrder(roles)
	for i, r := range roles {
		for _, text := range r.mkdirs {
			d, err := parseMkdir(text, len(roles))
			if err != nil {
				return nil, fmt.Errorf("storage %d: %s%.256q: %w", i, optMkdir, text, err)
			}
			d.Layer = order[d.Layer] // "mount N" counts the storages as they came
			if dirs = append(dirs, d); len(dirs) > maxMkdirs {
				return nil, fmt.Errorf("more than %d directories to make: %w", maxMkdirs, errdefs.ErrInvalidArgument)
			}
		}
	}
	return dirs, nil
}

func parseMkdir(text string, layers int) (Mkdir, error) {
	refuse := func(why string) (Mkdir, error) {
		return Mkdir{}, fmt.Errorf("%s: %w", why, errdefs.ErrInvalidArgument)
	}
	m, ok := readDirective(text)
	if !ok {
		return refuse("want {{ mount N }}/path[:mode[:uid:gid]]")
	}
	d := Mkdir{Mode: 0o755, UID: -1, GID: -1}
	d.Layer, _ = strconv.Atoi(m.layer) // at most three digits
	if d.Layer >= layers {
		return refuse(fmt.Sprintf("there are %d mounts", layers))
	}
	for _, name := range strings.Split(m.path, "/") {
		switch {
		case name == "" || name == ".":
		case name == "..":
			return refuse("the path leaves its mount")
		case len(name) > unix.NAME_MAX:
			return refuse("a name of more than 255 bytes")
		default:
			d.Path = append(d.Path, name)
		}
	}
	if len(d.Path) == 0 {
		return refuse("the path is the mount itself")
	}
	if m.mode != "" {
		mode, _ := strconv.ParseUint(m.mode, 8, 32) // at most four octal digits
		d.Mode = uint32(mode)
	}
	if m.uid != "" {
		uid, errUID := strconv.ParseUint(m.uid, 10, 31)
		gid, errGID := strconv.ParseUint(m.gid, 10, 31)
		if errUID != nil || errGID != nil {
			return refuse("an owner above 2147483647")
		}
		d.UID, d.GID = int(uid), int(gid)
	}
	return d, nil
}

// make makes the directory below the mounted root of its layer. Directories
// that exist stay as they are: a writable image is used more than once. The
// content of the layer is not trusted, so no step may follow a symbolic link,
// go up, or cross into another mount.
func (d Mkdir) make(root string) error {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer func() { unix.Close(dir) }()
	for i, name := range d.Path {
		where := root + "/" + strings.Join(d.Path[:i+1], "/")
		next, err := d.step(dir, name)
		if err != nil {
			return &os.PathError{Op: "mkdir", Path: where, Err: err}
		}
		unix.Close(dir)
		dir = next
	}
	return nil
}

// step opens the directory name below dir, and makes it first if it is missing.
func (d Mkdir) step(dir int, name string) (int, error) {
	made := false
	if err := unix.Mkdirat(dir, name, 0o700); err == nil {
		made = true
	} else if !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err := openBeneath(dir, name)
	if err != nil || !made {
		return fd, err
	}
	if err := unix.Fchown(fd, d.UID, d.GID); err != nil {
		unix.Close(fd)
		return -1, err
	}
	// After the owner, which clears set-id bits; and not by mkdir, which
	// the umask would cut.
	if err := unix.Fchmod(fd, d.Mode); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openBeneath opens a directory below dir without following any link.
func openBeneath(dir int, path string) (int, error) {
	return unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}
