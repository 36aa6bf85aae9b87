package layers

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// Chain is an image in the making, layer by layer.
type Chain struct {
	rng   *rand.Rand
	nodes map[string]tar.Header // what the layers so far make together, by path
	// covered are the directories over which a later layer has put something
	// else. What becomes a directory there again is marked opaque: mkfs.erofs
	// would merge it with what was covered.
	covered map[string]bool
	tars    [][]byte
	err     error
}

// Layers returns the tars of n layers, the oldest first. The first two are made
// by hand, of everything that can go wrong when layers become one; the others at
// random, some of them empty, and always the same.
//
// extra are files of the lowest layer, by path, executable.
func Layers(n int, extra map[string][]byte) ([][]byte, error) {
	c := newChain()
	for i := range n {
		l := newLayer(c, i)
		switch {
		case i == 0:
			base(l, extra)
		case i == 1:
			changes(l)
		case i%9 == 5: // an empty layer
		default:
			l.random(3 + c.rng.IntN(4))
		}
		c.tars = append(c.tars, l.end())
	}
	return c.tars, c.err
}

func newChain() *Chain {
	return &Chain{
		rng:   rand.New(rand.NewChaCha8([32]byte{1})),
		nodes: map[string]tar.Header{}, covered: map[string]bool{},
	}
}

// Revived returns the tars of layers in which a directory is replaced by a file
// and then by another directory, without a word of a deletion: what the first one
// held must not come back. extra is that of Layers.
func Revived(extra map[string][]byte) ([][]byte, error) {
	c := newChain()
	for i := range 3 {
		l := newLayer(c, i)
		switch i {
		case 0:
			base(l, extra)
			l.file("revived/old", "old")
		case 1:
			l.file("revived", "a directory became a file")
		case 2:
			clear(c.covered)
			l.file("revived/new", "a file became a directory")
		}
		c.tars = append(c.tars, l.end())
	}
	return c.tars, c.err
}

// Empty is the tar of a layer without anything in it.
func Empty() []byte {
	return newLayer(newChain(), 0).end()
}

// Files is the tar of a layer with these files, by path, executable, and a root
// directory of mode 0755.
func Files(files map[string][]byte) ([]byte, error) {
	c := newChain()
	l := newLayer(c, 0)
	l.dir(".", 0o755)
	for _, name := range mountPoints {
		l.dir(name, 0o755)
	}
	l.executables(files)
	return l.end(), c.err
}

// mountPoints are the directories over which every container has a mount.
var mountPoints = []string{"dev", "proc"}

func (l *layer) executables(files map[string][]byte) {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		l.put(plain(tar.TypeReg, name, 0o755), string(files[name]))
	}
}

// netRaw is the attribute of a file with the capability cap_net_raw, effective
// and permitted (include/uapi/linux/capability.h, struct vfs_cap_data, revision
// 2).
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// base is the lowest layer.
func base(l *layer, extra map[string][]byte) {
	l.dir(".", 0o755)
	for _, name := range mountPoints {
		l.dir(name, 0o755)
	}
	l.executables(extra)

	for _, name := range []string{"etc/deleted", "etc/replaced", "etc/kept", "opaque/hidden", "opaque/below/hidden", "gone/sub/file",
		"dir-to-file/x", "file-to-dir", "file-to-link", "link-target/x", "mode-dir/x", "again/old"} {
		l.file(name, "lower "+name+"\n")
	}
	l.put(symlink("link-to-dir", "link-target"), "")
	l.put(symlink("link-dangling", strings.Repeat("a-long-way/", 40)+"end"), "")
	l.put(symlink("link-loop", "link-loop"), "")

	l.file("size/nothing", "")
	for _, size := range []int{1, 511, 512, 513, 4095, 4096, 4097, 8191, 70001} {
		l.file(fmt.Sprintf("size/%d", size), content(l.chain.rng, size))
	}
	sparse := make([]byte, 3<<20+5)
	copy(sparse[1<<20:], "island")
	copy(sparse[3<<20:], "shore")
	l.file("size/sparse", string(sparse))

	l.file("links/one", content(l.chain.rng, 5000))
	for _, name := range []string{"links/two", "links/below/three", "links/four", "other/five"} {
		l.link(name, "links/one")
	}

	l.put(attributed(plain(tar.TypeReg, "xattr/note", 0o644), "user.note", "first\x00value\xff="), "note")
	l.put(attributed(plain(tar.TypeReg, "xattr/long", 0o644), "user.long", strings.Repeat("0123456789abcdef", 128)), "")
	l.put(attributed(plain(tar.TypeReg, "xattr/capable", 0o755), "security.capability", netRaw), "#!\n")
	l.put(attributed(plain(tar.TypeDir, "xattr/dir", 0o755), "user.dir", "lower"), "")
	many := plain(tar.TypeReg, "xattr/many", 0o644)
	many.PAXRecords = map[string]string{}
	for i := range 20 {
		many.PAXRecords[fmt.Sprintf("%suser.many.%02d", xattrRecord, i)] = strings.Repeat("v", i)
	}
	l.put(many, "many")

	l.put(device(tar.TypeChar, "special/null", 1, 3), "")
	l.put(device(tar.TypeChar, "special/far", 511, 70000), "")
	l.put(device(tar.TypeBlock, "special/block", 259, 300), "")
	l.put(owned(plain(tar.TypeFifo, "special/fifo", 0o622), 110, 0), "")
	l.put(owned(plain(tar.TypeReg, "special/setuid", 0o4755), 0, 5), "suid")
	l.put(owned(plain(tar.TypeReg, "special/far-owner", 0o2711), 4000000000, 2147483648), "far")
	l.put(plain(tar.TypeDir, "special/sticky", 0o1777), "")
	l.put(plain(tar.TypeDir, "special/closed", 0), "")
	l.put(plain(tar.TypeReg, "special/unreadable", 0), "unreadable")

	for i, name := range []string{"two words", " leading", "new\nline", `back\slash`, `quote"d'`, "grüße", "e\u0301", "🌅",
		"latin-1 \xe4", "\x01control", "wh.no-whiteout", ".why", "..two", strings.Repeat("n", 255)} {
		l.file("names/"+name, fmt.Sprintln("odd", i))
	}
	for i := range 150 { // more than one block of a directory
		l.file(fmt.Sprintf("names/many/entry-with-a-name-of-some-length-%03d", i), "")
	}
	l.file("deep"+strings.Repeat("/"+strings.Repeat("d", 60), 12)+"/file", "deep")
}

// changes is the layer above base: it replaces, deletes and hides.
func changes(l *layer) {
	for _, name := range []string{"etc/deleted", "gone", "again", "links/two", "names/two words", "names/new\nline"} {
		l.remove(name)
	}
	l.put(owned(plain(tar.TypeReg, "etc/replaced", 0o600), 110, 110), "upper, and longer than it was")
	l.opaque(plain(tar.TypeDir, "opaque", 0o711))
	l.file("opaque/seen", "seen")
	l.file("dir-to-file", "a directory became a file")
	l.file("file-to-dir/inside", "a file became a directory")
	l.put(symlink("file-to-link", "etc/kept"), "")
	l.file("link-to-dir/inside", "a link became a directory")
	l.put(attributed(owned(plain(tar.TypeDir, "mode-dir", 0o2700), 110, 110), "user.dir", "upper"), "")
	l.file("links/four", "alone")
	l.file("links/six", "upper pair")
	l.link("links/seven", "links/six")
	l.put(attributed(plain(tar.TypeReg, "xattr/note", 0o644), "user.note", "second"), "note")
	l.put(plain(tar.TypeDir, "xattr/dir", 0o755), "") // without the attribute
	l.put(plain(tar.TypeReg, "xattr/capable", 0o755), "#!\n")
	l.put(device(tar.TypeChar, "special/block", 5, 1), "")
	l.put(plain(tar.TypeFifo, "special/null", 0o600), "")
}

// Where the random layers play: few names, so that they meet.
var (
	grounds = []string{"r0", "r1", "r1/s", "r1/s/t", "r2", "r2/s", "etc", "opaque", "links", "again"}
	toys    = []string{"a", "b", "c", "d", "e", "f", "ü g", "h\n"}
)

// random says something about up to n paths, each of which it chooses once, and
// of none that is below or above another that it removes or replaces.
func (l *layer) random(n int) {
	rng := l.chain.rng
	for range n {
		name := path.Join(grounds[rng.IntN(len(grounds))], toys[rng.IntN(len(toys))])
		if rng.IntN(4) == 0 {
			name = path.Dir(name)
		}
		if l.entangled(name) {
			continue
		}
		if _, there := l.chain.nodes[name]; there && rng.IntN(3) == 0 {
			l.remove(name)
			continue
		}
		l.chance(name)
	}
}

// entangled says whether this layer says something already about the path, what
// is below it or, but for directories that it lists, what is above.
func (l *layer) entangled(name string) bool {
	for p := range l.taken {
		if p == name || strings.HasPrefix(p, name+"/") || strings.HasPrefix(name, p+"/") && !l.listed[p] {
			return true
		}
	}
	return false
}

// chance puts something at a path.
func (l *layer) chance(name string) {
	rng := l.chain.rng
	modes := []int64{0o644, 0o600, 0o755, 0o4711, 0o444}
	file := owned(plain(tar.TypeReg, name, modes[rng.IntN(len(modes))]), rng.IntN(3)*1000, rng.IntN(2)*50)
	dir := owned(plain(tar.TypeDir, name, 0o700|int64(rng.IntN(0o100))), rng.IntN(2)*7, 0)
	switch rng.IntN(10) {
	case 0:
		l.put(dir, "")
	case 1:
		l.put(attributed(dir, "user.layer", fmt.Sprint(rng.IntN(100))), "")
		l.file(name+"/inside", content(rng, rng.IntN(100)))
	case 2:
		l.opaque(dir)
		l.file(name+"/inside", content(rng, rng.IntN(100)))
	case 3:
		l.put(symlink(name, grounds[rng.IntN(len(grounds))]), "")
	case 4:
		l.put(device(tar.TypeChar, name, 1, 1+int64(rng.IntN(9))), "") // 0:0 would be a whiteout
	case 5:
		if len(l.files) > 0 {
			l.link(name, l.files[rng.IntN(len(l.files))])
			return
		}
		l.put(plain(tar.TypeFifo, name, 0o600), "")
	case 6:
		l.put(attributed(file, "user.layer", fmt.Sprint(rng.IntN(100))), content(rng, rng.IntN(5000)))
	default:
		l.put(file, content(rng, rng.IntN(20000)))
	}
}

// content is n bytes that do not repeat.
func content(rng *rand.Rand, n int) string {
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%016x", rng.Uint64())
	}
	return b.String()[:n]
}
