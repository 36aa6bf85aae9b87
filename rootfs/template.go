package rootfs

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// hostPath is the mount index of a place that lies in no mount of the list.
const hostPath = -1

// place is a path as an option names it: below the mount point of one of the
// list's mounts, or on the host.
type place struct {
	mount int    // index into the list, or hostPath
	path  string // below the mount point, "" for the mount point itself; else the host's path
}

// templated says whether containerd's format transform would rewrite s.
func templated(s string) bool { return strings.Contains(s, "{{") }

// piece is a part of a resolved template: text, or a mount point.
type piece struct {
	text  string
	mount int // hostPath for text
}

// resolver evaluates the expressions of containerd's format transform. An
// expression in mount i may refer to the mounts before i only, because
// containerd evaluates it when just those are active; this also rules out
// cycles. See core/mount/manager/format.go of containerd.
type resolver struct {
	mounts []*mount
	spent  int // strings and pieces so far; sources that refer to sources multiply
}

// maxPieces bounds the work of one resolver: an overlay expression yields two
// pieces per mount.
const maxPieces = 4 * maxMounts

var errTooLong = errors.New("expands to too many parts")

// places resolves s, an option value of mount at, and splits it where overlay
// splits lists, at colons.
func (r *resolver) places(s string, at int) ([]place, error) {
	pieces, err := r.pieces(s, at)
	if err != nil {
		return nil, err
	}
	var list [][]piece
	var element []piece
	for _, p := range pieces {
		if p.mount != hostPath {
			element = append(element, p)
			continue
		}
		for i, text := range strings.Split(p.text, ":") {
			if i > 0 {
				list = append(list, element)
				element = nil
			}
			if text != "" {
				element = append(element, piece{text: text, mount: hostPath})
			}
		}
	}
	list = append(list, element)

	places := make([]place, 0, len(list))
	for _, element := range list {
		p, err := placeOf(element)
		if err != nil {
			return nil, err
		}
		places = append(places, p)
	}
	return places, nil
}

// place resolves s to exactly one place.
func (r *resolver) place(s string, at int) (place, error) {
	list, err := r.places(s, at)
	if err != nil {
		return place{}, err
	}
	if len(list) != 1 {
		return place{}, fmt.Errorf("names %d paths where one is wanted", len(list))
	}
	return list[0], nil
}

// file resolves s, of mount at, to a file of the host. Without a template it is
// the path as it stands, colons and all.
func (r *resolver) file(s string, at int) (string, error) {
	if !templated(s) {
		return s, checkPath(s)
	}
	pieces, err := r.pieces(s, at)
	if err != nil {
		return "", err
	}
	p, err := placeOf(pieces)
	if err != nil {
		return "", err
	}
	if p.mount != hostPath {
		return "", fmt.Errorf("leads into what mount %d shows; a file of the host is wanted", p.mount)
	}
	return p.path, nil
}

func placeOf(element []piece) (place, error) {
	if len(element) == 0 {
		return place{}, errors.New("names an empty path")
	}
	root := hostPath
	if element[0].mount != hostPath {
		root = element[0].mount
		element = element[1:]
	}
	var below strings.Builder
	for _, p := range element {
		if p.mount != hostPath {
			return place{}, errors.New("has a mount point in the middle of a path")
		}
		below.WriteString(p.text)
	}
	p := place{mount: root, path: below.String()}
	if root != hostPath && p.path == "" {
		return p, nil
	}
	if err := checkPath(p.path); err != nil {
		return place{}, err
	}
	return p, nil
}

// checkPath accepts absolute paths in the one form that needs no cleaning:
// what is compared here and what is opened later must be the same name.
func checkPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("path %s is not absolute", printable(p))
	case path.Clean(p) != p:
		return fmt.Errorf("path %s is not clean (want %s)", printable(p), printable(path.Clean(p)))
	}
	return nil
}

func (r *resolver) pieces(s string, at int) ([]piece, error) {
	if r.spent++; r.spent > maxPieces {
		return nil, errTooLong
	}
	var out []piece
	for s != "" {
		text, rest, found := strings.Cut(s, "{{")
		if text != "" {
			out = append(out, piece{text: text, mount: hostPath})
		}
		if !found {
			break
		}
		expr, rest, found := strings.Cut(rest, "}}")
		if !found {
			return nil, errors.New("has a template that is not closed with }}")
		}
		values, err := r.eval(expr, at)
		if err != nil {
			return nil, fmt.Errorf("template {{%s}}: %w", printable(expr), err)
		}
		out = append(out, values...)
		s = rest
	}
	if r.spent += len(out); r.spent > maxPieces {
		return nil, errTooLong
	}
	return out, nil
}

func (r *resolver) eval(expr string, at int) ([]piece, error) {
	words := strings.Fields(expr)
	if len(words) == 0 {
		return nil, errors.New("is empty")
	}
	args := make([]int, 0, 2)
	for _, w := range words[1:] {
		i, err := strconv.ParseUint(w, 10, 16)
		if err != nil || strconv.FormatUint(i, 10) != w {
			return nil, fmt.Errorf("argument %s is not a number of a mount", printable(w))
		}
		if int(i) >= at {
			return nil, fmt.Errorf("refers to mount %d, but only the %d before this one can be used", i, at)
		}
		args = append(args, int(i))
	}
	want := 1
	if words[0] == "overlay" {
		want = 2
	}
	if len(args) != want {
		return nil, fmt.Errorf("has %d arguments, wants %d", len(args), want)
	}
	switch words[0] {
	case "mount":
		return []piece{{mount: args[0]}}, nil
	case "overlay":
		return mountRange(args[0], args[1]), nil
	case "source":
		return r.pieces(r.mounts[args[0]].Source, args[0])
	case "target":
		return r.pieces(r.mounts[args[0]].Target, args[0])
	}
	return nil, fmt.Errorf("function %s is not known (mount, source, target, overlay are)", printable(words[0]))
}

// mountRange is the list from first to last with both ends, downwards if first
// is the greater, joined by colons.
func mountRange(first, last int) []piece {
	step := 1
	if first > last {
		step = -1
	}
	out := []piece{{mount: first}}
	for i := first; i != last; {
		i += step
		out = append(out, piece{text: ":", mount: hostPath}, piece{mount: i})
	}
	return out
}
