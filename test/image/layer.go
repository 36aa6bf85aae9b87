package image

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// clock is the time of everything that is made here.
var clock = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// Names that mean a deletion to those who unpack a layer (OCI image-spec,
// layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

// xattrRecord begins the PAX record of an extended attribute.
const xattrRecord = "SCHILY.xattr."

// ground is what the layers so far have: what a layer needs to know to list the
// directories on the way to its files as they are.
type ground struct {
	dirs  map[string]tar.Header
	links map[string]string // targets of symbolic links, by path
}

func newGround() *ground {
	return &ground{dirs: map[string]tar.Header{}, links: map[string]string{}}
}

// layer writes one layer. Every directory on the way to a file is listed before
// it, with the mode and owner that it has below: mkfs.erofs would make it 0777
// otherwise, and other unpackers something else.
type layer struct {
	tar    *tar.Writer
	ground *ground
	listed map[string]bool       // directories
	files  map[string]tar.Header // regular files, for the hard links to them
}

func newLayer(w io.Writer, g *ground) *layer {
	return &layer{tar: tar.NewWriter(w), ground: g, listed: map[string]bool{}, files: map[string]tar.Header{}}
}

// option changes a header before it is written.
type option func(*tar.Header)

func owner(uid, gid int) option {
	return func(h *tar.Header) { h.Uid, h.Gid = uid, gid }
}

// modified sets the time, of which only PAX keeps the part of a second.
func modified(t time.Time) option {
	return func(h *tar.Header) { h.ModTime, h.Format = t, tar.FormatPAX }
}

func xattr(name, value string) option {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+name] = value
	}
}

// add writes an entry, after the directories on its way that this layer has not
// listed yet.
func (l *layer) add(h tar.Header, content io.Reader) error {
	name := cleanName(h.Name)
	if parent := path.Dir(name); name != "." && !l.listed[parent] {
		if err := l.dirAsBelow(parent); err != nil {
			return err
		}
	}
	h.Name = name
	switch h.Typeflag {
	case tar.TypeDir:
		h.Name += "/"
		l.listed[name] = true
		l.ground.dirs[name] = h
	case tar.TypeSymlink:
		l.ground.links[name] = h.Linkname
	case tar.TypeReg:
		l.files[name] = h
	}
	if err := l.tar.WriteHeader(&h); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if content == nil {
		return nil
	}
	if _, err := io.Copy(l.tar, content); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	return nil
}

// dirAsBelow lists a directory as the layers below have it, or as a usual one
// if they do not.
func (l *layer) dirAsBelow(name string) error {
	h, ok := l.ground.dirs[name]
	switch {
	case ok:
		return l.add(h, nil)
	case name == ".": // an archive that has no root of its own
		return nil
	}
	return l.dir(name, 0o755)
}

func header(kind byte, name string, mode int64, options []option) tar.Header {
	h := tar.Header{Typeflag: kind, Name: name, Mode: mode, ModTime: clock}
	for _, set := range options {
		set(&h)
	}
	return h
}

func (l *layer) dir(name string, mode int64, options ...option) error {
	return l.add(header(tar.TypeDir, name, mode, options), nil)
}

func (l *layer) file(name string, mode int64, content string, options ...option) error {
	return l.stream(name, mode, int64(len(content)), strings.NewReader(content), options...)
}

// stream writes a file of size bytes from a reader that may have more.
func (l *layer) stream(name string, mode, size int64, content io.Reader, options ...option) error {
	h := header(tar.TypeReg, name, mode, options)
	h.Size = size
	return l.add(h, io.LimitReader(content, size))
}

func (l *layer) symlink(name, target string, options ...option) error {
	h := header(tar.TypeSymlink, name, 0o777, options)
	h.Linkname = target
	return l.add(h, nil)
}

// hardlink adds a name to a file that this layer has already. Its entry repeats
// mode and owner, as tar(1) does: containerd sets them once more for each name.
func (l *layer) hardlink(name, target string) error {
	h, ok := l.files[target]
	if !ok {
		return fmt.Errorf("hard link %q: this layer has no file %q", name, target)
	}
	h.Typeflag, h.Name, h.Linkname, h.Size = tar.TypeLink, name, target, 0
	return l.add(h, nil)
}

func (l *layer) node(kind byte, name string, mode, major, minor int64, options ...option) error {
	h := header(kind, name, mode, options)
	h.Devmajor, h.Devminor = major, minor
	return l.add(h, nil)
}

// remove deletes a path of a layer below.
func (l *layer) remove(name string) error {
	l.ground.forget(name)
	return l.file(path.Join(path.Dir(name), whiteoutPrefix+path.Base(name)), 0, "")
}

// opaque makes a directory that hides all that the layers below have in it.
func (l *layer) opaque(name string, mode int64) error {
	l.ground.forget(name)
	if err := l.dir(name, mode); err != nil {
		return err
	}
	return l.file(path.Join(name, opaqueMarker), 0, "")
}

// forget drops a path and what is below it from what later layers build on.
func (g *ground) forget(name string) {
	within := func(p string) bool { return p == name || strings.HasPrefix(p, name+"/") }
	for p := range g.dirs {
		if within(p) {
			delete(g.dirs, p)
		}
	}
	for p := range g.links {
		if within(p) {
			delete(g.links, p)
		}
	}
}

// unpack copies an archive into the layer, as dpkg would unpack it onto the
// layers below: a directory that is there stays as it is, a directory that is a
// symbolic link there is followed. Names of owners, which mean nothing in an
// image, and times of access are dropped.
func (l *layer) unpack(archive *tar.Reader) error {
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		entry, err := l.ground.follow(h)
		if err != nil {
			return err
		}
		if entry.Typeflag == tar.TypeDir && l.ground.isDir(entry.Name) {
			continue // it is listed when something in it is
		}
		if err := l.add(entry, archive); err != nil {
			return err
		}
	}
}

// isDir says whether a path is a directory already, or a symbolic link that
// stands for one.
func (g *ground) isDir(name string) bool {
	_, dir := g.dirs[name]
	_, link := g.links[name]
	return dir || link
}

// follow is a header for the place to which the links below lead.
func (g *ground) follow(h *tar.Header) (tar.Header, error) {
	name, err := g.resolve(h.Name)
	if err != nil {
		return tar.Header{}, err
	}
	entry := tar.Header{
		Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor,
	}
	for record, value := range h.PAXRecords {
		if attribute, ok := strings.CutPrefix(record, xattrRecord); ok {
			xattr(attribute, value)(&entry)
		}
	}
	if h.Typeflag == tar.TypeLink {
		entry.Linkname, err = g.resolve(h.Linkname)
	}
	return entry, err
}

// maxLinks is how many links a path may lead through, as in the kernel
// (MAXSYMLINKS in include/linux/namei.h).
const maxLinks = 40

// resolve follows the symbolic links of the layers below in every part of a
// path but the last.
func (g *ground) resolve(name string) (string, error) {
	todo := strings.Split(cleanName(name), "/")
	done := ""
	for hops := 0; len(todo) > 1; {
		next := path.Join(done, todo[0])
		target, isLink := g.links[next]
		if !isLink {
			done, todo = next, todo[1:]
			continue
		}
		if hops++; hops > maxLinks {
			return "", fmt.Errorf("%q leads through more than %d links", name, maxLinks)
		}
		if !path.IsAbs(target) {
			target = path.Join(done, target)
		}
		todo = append(strings.Split(cleanName(target), "/"), todo[1:]...)
		done = ""
	}
	return path.Join(done, todo[0]), nil
}

// cleanName makes "./a/b/" and "/a/b" to "a/b", and the root to ".". It never
// leads out of the root.
func cleanName(name string) string {
	if clean := strings.TrimPrefix(path.Join("/", name), "/"); clean != "" {
		return clean
	}
	return "."
}
