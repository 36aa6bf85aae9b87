package image

import (
	"archive/tar"
	"bytes"
	_ "embed"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"
)

// firstLightScript is the command of FirstLight. It knows what the layers below
// leave where, so the two change together.
//
//go:embed first-light.sh
var firstLightScript string

// bigSize is the length of the file that makes a layer larger than a hundred
// megabytes, and ends within a block.
const bigSize = 120<<20 + 77

// noise is an endless reader of bytes that do not compress, the same ones for
// the same seed.
func noise(seed byte) io.Reader {
	return rand.NewChaCha8([32]byte(bytes.Repeat([]byte{seed}, 32)))
}

// do runs functions up to the first error.
func do(steps ...func() error) error {
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// accounts replaces files of the base and of packages.
func accounts(l *layer) error {
	return do(
		func() error {
			return l.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/bash\n"+
				"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\nredis:x:110:110::/var/lib/redis:/usr/sbin/nologin\n")
		},
		func() error { return l.file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\nredis:x:110:\n") },
		func() error { return l.file("etc/hostname", 0o644, "first-light\n") },
		func() error { return l.dir("var/lib/redis", 0o750, owner(110, 110)) },
		func() error {
			return l.file("etc/redis/redis.conf", 0o640, "port 0\nsave \"\"\nappendonly no\ndir /var/lib/redis\n", owner(0, 110))
		},
	)
}

// bigFiles has what is long: noise, and a file of zeros with two islands.
func bigFiles(l *layer) error {
	const sparse = 48 << 20
	zeros := io.LimitReader(zeroReader{}, sparse)
	return do(
		func() error { return l.stream("srv/data/noise.bin", 0o644, bigSize, noise(1)) },
		func() error {
			return l.stream("srv/data/sparse.bin", 0o644, sparse+8+5, io.MultiReader(strings.NewReader("island-1"), zeros, strings.NewReader("shore")))
		},
		func() error { return l.stream("srv/data/block.bin", 0o644, 4096, noise(2)) },
		func() error { return l.stream("srv/data/block-and-one.bin", 0o644, 4097, noise(3)) },
		func() error { return l.file("srv/data/nothing", 0o644, "") },
	)
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// links has hard links within and across directories, and symbolic links of
// every kind.
func links(l *layer) error {
	hard := func(name string) func() error {
		return func() error { return l.hardlink(name, "srv/links/hard-1") }
	}
	soft := func(name, target string) func() error {
		return func() error { return l.symlink(name, target) }
	}
	return do(
		func() error { return l.file("srv/links/hard-1", 0o640, "three names, one file\n", owner(110, 110)) },
		hard("srv/links/hard-2"), hard("srv/links/below/hard-3"), hard("srv/links/hard-4"),
		soft("srv/links/relative", "below/hard-3"),
		soft("srv/links/absolute", "/srv/links/hard-1"),
		soft("srv/links/dangling", "../no/such/file"),
		soft("srv/links/loop", "loop"),
		soft("srv/links/to-dir", "below"),
		soft("srv/links/long", "/"+strings.Repeat("a-long-way/", 40)+"end"),
		func() error { return l.symlink("srv/links/owned", "hard-1", owner(1234567, 65534)) },
	)
}

// attributes has extended attributes of the namespaces that a layer can carry.
// trusted.* is none of them: containerd's unpacker leaves it out with a warning,
// mkfs.erofs keeps it.
func attributes(l *layer) error {
	many := make([]option, 0, 24)
	for i := range 24 {
		many = append(many, xattr(fmt.Sprintf("user.many.%02d", i), strings.Repeat(string(rune('a'+i)), i)))
	}
	return do(
		func() error { return l.dir("srv/xattr", 0o755, xattr("user.on-a-directory", "yes")) },
		func() error {
			return l.file("srv/xattr/user", 0o644, "user\n", xattr("user.text", "läuft"), xattr("user.empty", ""))
		},
		func() error { return l.file("srv/xattr/binary", 0o644, "", xattr("user.binary", "a\x00b\xffc\n=")) },
		func() error { return l.file("srv/xattr/many", 0o644, "many\n", many...) },
		func() error {
			return l.file("srv/xattr/long", 0o644, "long\n", xattr("user.long", strings.Repeat("0123456789abcdef", 128)))
		},
		func() error {
			return l.file("usr/local/bin/capable", 0o755, "#!/bin/sh\nexit 0\n", xattr("security.capability", capability(10)))
		},
	)
}

// capability is the attribute of a file that has one capability, effective and
// permitted (include/uapi/linux/capability.h, struct vfs_cap_data, revision 2).
func capability(bit uint) string {
	const revision2, effective = 0x02000000, 1
	words := [5]uint32{revision2 | effective}
	words[1+2*(bit/32)] = 1 << (bit % 32)
	var data []byte
	for _, word := range words {
		data = binary.LittleEndian.AppendUint32(data, word)
	}
	return string(data)
}

// special has what is no file and no directory, and modes and owners that are
// seldom seen.
func special(l *layer) error {
	return do(
		func() error { return l.node(tar.TypeChar, "srv/special/null", 0o666, 1, 3) },
		func() error { return l.node(tar.TypeChar, "srv/special/far", 0o600, 511, 70000, owner(0, 110)) },
		func() error { return l.node(tar.TypeBlock, "srv/special/loop7", 0o660, 7, 7) },
		func() error { return l.node(tar.TypeFifo, "srv/special/fifo", 0o622, 0, 0, owner(110, 0)) },
		func() error { return l.file("usr/local/bin/setuid", 0o4755, "#!/bin/sh\nid -u\n") },
		func() error { return l.file("usr/local/bin/setgid", 0o2755, "#!/bin/sh\nid -g\n", owner(0, 110)) },
		func() error { return l.dir("srv/special/sticky", 0o1777) },
		func() error { return l.dir("srv/special/setgid-dir", 0o2775, owner(0, 110)) },
		func() error { return l.dir("srv/special/closed", 0o000) },
		func() error { return l.file("srv/special/unreadable", 0o000, "unreadable\n") },
		func() error { return l.file("srv/special/far-owner", 0o644, "far\n", owner(4000000000, 2147483648)) },
		func() error {
			return l.file("srv/special/old", 0o644, "old\n", modified(time.Unix(1, 0)))
		},
		func() error {
			return l.file("srv/special/exact", 0o644, "exact\n", modified(time.Unix(1700000000, 123456789)))
		},
		func() error { return l.dir("srv/special/empty-dir", 0o755) },
	)
}

// oddNames are names that a careless path, quotation or listing breaks.
var oddNames = []string{
	"two words", " leading", "trailing ", "new\nline", "tab\tstop", `back\slash`, `quote"d'`, "$HOME", "*", "-rf", "~",
	"grüße", "e\u0301 decomposed", "日本語", "🌅", ".hidden", "..two", "...", "colon:comma,equals=", "%s%n", "#", "\x01control",
	"latin-1 \xe4", "wh.no-whiteout", ".why", strings.Repeat("n", 255),
}

func names(l *layer) error {
	for i, name := range oddNames {
		if err := l.file("srv/names/"+name, 0o644, fmt.Sprintln("odd", i)); err != nil {
			return err
		}
	}
	deep := "srv/names/deep" + strings.Repeat("/"+strings.Repeat("d", 60), 12)
	if err := l.file(deep+"/file", 0o644, "deep\n"); err != nil {
		return err
	}
	for i := range 700 { // more than a directory block holds
		if err := l.file(fmt.Sprintf("srv/names/many/entry-%03d", i), 0o644, ""); err != nil {
			return err
		}
	}
	return nil
}

// noEntries has nothing at all in it.
func noEntries(*layer) error { return nil }

// tangle is what the layers above it replace and delete.
func tangle(l *layer) error {
	file := func(name string) func() error {
		return func() error { return l.file("srv/tangle/"+name, 0o644, "lower "+name+"\n") }
	}
	return do(
		file("kept"), file("replaced"), file("deleted"), file("chmod"), file("chown"), file("file-to-dir"), file("file-to-link"),
		file("deleted words ü\n"), file("dir-to-file/old"), file("deleted-dir/sub/old"), file("hidden-dir/old"),
		file("hidden-dir/sub/old"), file("again/old"), file("mode-dir/old"), file("touched"), file("bin-target/old"),
		file("twice"), file("xattr"),
		func() error { return l.symlink("srv/tangle/link-to-dir", "bin-target") },
		func() error { return l.symlink("srv/tangle/link-to-file", "kept") },
	)
}

// deletions deletes, replaces and hides: files of the base, of packages and of
// the layers made here.
func deletions(l *layer) error {
	remove := func(name string) func() error {
		return func() error { return l.remove(name) }
	}
	return do(
		remove("etc/debian_version"),           // of the base
		remove("usr/share/doc/redis-server"),   // a directory of a package
		remove("usr/share/doc/libc6"),          // a directory of the base
		remove("srv/links/hard-2"),             // one of four names of a file
		remove("srv/names/two words"),          //
		remove("srv/tangle/deleted"),           //
		remove("srv/tangle/deleted words ü\n"), //
		remove("srv/tangle/deleted-dir"),       //
		remove("srv/tangle/again"),             // comes back in the next layer
		remove("srv/tangle/twice"),             // as well
		func() error { return l.opaque("srv/tangle/hidden-dir", 0o711) },
		func() error { return l.file("srv/tangle/hidden-dir/new", 0o600, "upper\n") },
	)
}

// replacements puts another thing in the place of one below.
func replacements(l *layer) error {
	return do(
		func() error {
			return l.file("srv/tangle/replaced", 0o600, "upper, and longer than it was\n", owner(110, 110))
		},
		func() error { return l.file("srv/tangle/chmod", 0o4711, "lower chmod\n") },
		func() error { return l.file("srv/tangle/chown", 0o644, "lower chown\n", owner(65534, 65534)) },
		func() error { return l.file("srv/tangle/xattr", 0o644, "lower xattr\n", xattr("user.new", "1")) },
		func() error {
			return l.file("srv/tangle/touched", 0o644, "lower touched\n", modified(clock.Add(time.Hour)))
		},
		func() error { return l.file("srv/tangle/file-to-dir/new", 0o644, "upper\n") },
		func() error { return l.symlink("srv/tangle/file-to-link", "kept") },
		func() error { return l.file("srv/tangle/dir-to-file", 0o644, "upper\n") },
		func() error { return l.file("srv/tangle/link-to-dir/new", 0o644, "upper\n") },
		func() error { return l.file("srv/tangle/link-to-file", 0o644, "upper\n") },
		func() error { return l.dir("srv/tangle/mode-dir", 0o2700, owner(110, 110), xattr("user.dir", "upper")) },
		func() error { return l.file("srv/tangle/again/new", 0o644, "upper\n") },
		func() error { return l.file("srv/tangle/twice", 0o644, "upper\n") },
		// A name of a group of hard links becomes a file of its own, and two
		// new names join in this layer.
		func() error { return l.file("srv/links/hard-4", 0o644, "alone\n") },
		func() error { return l.file("srv/links/upper-1", 0o644, "upper pair\n") },
		func() error { return l.hardlink("srv/links/upper-2", "srv/links/upper-1") },
	)
}
