package layers

import (
	"archive/tar"
	"bytes"
	"path"
	"strings"
	"time"
)

// epoch is the time of the lowest layer; every layer is an hour younger than
// the one below.
var epoch = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// xattrRecord begins the PAX record of an extended attribute.
const xattrRecord = "SCHILY.xattr."

// Names that mean a deletion to those who unpack a layer (OCI image-spec,
// layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

// layer writes the tar of one layer on top of those before. It lists every
// directory on the way to a file first, as it is below: mkfs.erofs would make it
// 0777, and containerd 0755.
type layer struct {
	chain  *Chain
	when   time.Time
	out    bytes.Buffer
	tar    *tar.Writer
	listed map[string]bool // directories
	taken  map[string]bool // what the layer says something about
	files  []string        // regular files with content, for hard links
}

func newLayer(c *Chain, number int) *layer {
	l := &layer{chain: c, when: epoch.Add(time.Duration(number) * time.Hour), listed: map[string]bool{}, taken: map[string]bool{}}
	l.tar = tar.NewWriter(&l.out)
	return l
}

// put adds an entry and makes it what the chain has at its path. A directory
// keeps what is in it, anything else has nothing below.
func (l *layer) put(h tar.Header, content string) {
	l.parents(h.Name)
	l.taken[h.Name] = true
	h.Size, h.ModTime, h.Format = int64(len(content)), l.when, tar.FormatPAX
	old, was := l.chain.nodes[h.Name]
	if h.Typeflag != tar.TypeDir || was && old.Typeflag != tar.TypeDir {
		l.chain.forget(h.Name)
	}
	if h.Typeflag != tar.TypeDir && was && old.Typeflag == tar.TypeDir {
		l.chain.covered[h.Name] = true
	}
	l.chain.nodes[h.Name] = h
	switch h.Typeflag {
	case tar.TypeDir:
		l.listed[h.Name] = true
	case tar.TypeReg:
		l.files = append(l.files, h.Name)
	}
	l.write(h, content)
}

// parents lists the directories on the way to name that are not listed yet.
func (l *layer) parents(name string) {
	if name == "." {
		return
	}
	dir := path.Dir(name)
	if l.listed[dir] {
		return
	}
	l.parents(dir)
	l.listed[dir] = true
	l.taken[dir] = true
	h, ok := l.chain.nodes[dir]
	if !ok || h.Typeflag != tar.TypeDir {
		h = tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: l.when, Format: tar.FormatPAX}
		l.chain.forget(dir)
		l.chain.nodes[dir] = h
	}
	l.write(h, "")
}

func (l *layer) write(h tar.Header, content string) {
	name := h.Name
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if err := l.tar.WriteHeader(&h); err != nil {
		l.chain.fail(err)
		return
	}
	if _, err := l.tar.Write([]byte(content)); err != nil {
		l.chain.fail(err)
	}
	if h.Typeflag == tar.TypeDir && l.chain.covered[name] {
		l.hideBelow(name)
	}
}

// hideBelow hides what the layers below have in a directory.
func (l *layer) hideBelow(name string) {
	l.chain.uncover(name)
	l.write(tar.Header{Typeflag: tar.TypeReg, Name: path.Join(name, opaqueMarker), ModTime: l.when}, "")
}

// remove deletes a path of the layers below.
func (l *layer) remove(name string) {
	l.parents(name)
	l.taken[name] = true
	l.chain.forget(name)
	l.chain.uncover(name)
	l.write(tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteoutPrefix+path.Base(name)), ModTime: l.when}, "")
}

// opaque hides what the layers below have in a directory.
func (l *layer) opaque(h tar.Header) {
	l.chain.forget(h.Name)
	l.chain.uncover(h.Name)
	l.put(h, "")
	l.hideBelow(h.Name)
}

// link adds a name to a file that this layer has. mode, owner and attributes are
// repeated, as tar(1) does: containerd sets them once more for each name.
func (l *layer) link(name, target string) {
	h := l.chain.nodes[target]
	h.Typeflag, h.Name, h.Linkname = tar.TypeLink, name, target
	l.put(h, "")
}

// end closes the tar and returns it.
func (l *layer) end() []byte {
	if err := l.tar.Close(); err != nil {
		l.chain.fail(err)
	}
	return l.out.Bytes()
}

// forget drops a path and what is below it from what later layers build on.
func (c *Chain) forget(name string) {
	for p := range c.nodes {
		if p == name || strings.HasPrefix(p, name+"/") {
			delete(c.nodes, p)
		}
	}
}

// uncover says that nothing covers a path, or what is below it, any more.
func (c *Chain) uncover(name string) {
	for p := range c.covered {
		if p == name || strings.HasPrefix(p, name+"/") {
			delete(c.covered, p)
		}
	}
}

// fail keeps the first error, for Layers.
func (c *Chain) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (l *layer) file(name, content string)   { l.put(plain(tar.TypeReg, name, 0o644), content) }
func (l *layer) dir(name string, mode int64) { l.put(plain(tar.TypeDir, name, mode), "") }

func plain(kind byte, name string, mode int64) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Mode: mode}
}

func attributed(h tar.Header, name, value string) tar.Header {
	h.PAXRecords = map[string]string{xattrRecord + name: value}
	return h
}

func owned(h tar.Header, uid, gid int) tar.Header {
	h.Uid, h.Gid = uid, gid
	return h
}

func device(kind byte, name string, major, minor int64) tar.Header {
	h := plain(kind, name, 0o640)
	h.Devmajor, h.Devminor = major, minor
	return h
}

func symlink(name, target string) tar.Header {
	h := plain(tar.TypeSymlink, name, 0o777)
	h.Linkname = target
	return h
}
