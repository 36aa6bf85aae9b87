package image

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// packages become a layer each, in this order, which is that of debs/layers.
var packages = []string{
	"redis-server", "nginx-light", "busybox-static", "procps", "curl", "ca-certificates", "vim-tiny", "attr",
}

// busyboxFile is where busybox is in its package.
const busyboxFile = "bin/busybox"

func (in Inputs) recipes() ([]recipe, error) {
	files, err := in.packageFiles(packages)
	if err != nil {
		return nil, err
	}
	return []recipe{in.firstLight(files), in.one(files["busybox-static"]), in.two(files["busybox-static"]), in.pause(files["busybox-static"])}, nil
}

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// firstLight is Debian, a server, and every difficulty of crafted.go.
func (in Inputs) firstLight(files map[string][]string) recipe {
	r := recipe{
		name: FirstLight,
		config: v1.Config{
			Env:        []string{searchPath, "LANG=C.UTF-8", "FIRST_LIGHT=two words, and \"quotes\""},
			WorkingDir: "/srv",
			Cmd:        []string{"/usr/local/bin/first-light"},
			Labels:     map[string]string{"org.opencontainers.image.title": "erofsvm first light"},
		},
	}
	r.steps = append(r.steps, step{name: "debian", write: func(l *layer) error {
		return l.unpackTar(filepath.Join(in.Base, "rootfs.tar"))
	}})
	for _, name := range packages {
		r.steps = append(r.steps, step{name: name, gzip: true, write: func(l *layer) error {
			for _, deb := range files[name] {
				if err := l.unpackDeb(deb); err != nil {
					return err
				}
			}
			return nil
		}})
	}
	r.steps = append(r.steps,
		step{name: "accounts", write: accounts},
		step{name: "big-files", write: bigFiles},
		step{name: "links", write: links},
		step{name: "attributes", write: attributes},
		step{name: "special", write: special},
		step{name: "names", gzip: true, write: names},
		step{name: "empty", write: noEntries},
		step{name: "tangle", write: tangle},
		step{name: "deletions", write: deletions},
		step{name: "replacements", write: replacements},
		step{name: "first-light", gzip: true, write: func(l *layer) error {
			if err := l.file("usr/local/bin/first-light", 0o755, firstLightScript); err != nil {
				return err
			}
			return l.program("usr/local/bin/tree-list", in.TreeList)
		}},
	)
	return r
}

// one is busybox and tree-list.
func (in Inputs) one(busybox []string) recipe {
	return recipe{
		name:  One,
		steps: []step{{name: "busybox", write: func(l *layer) error { return in.busybox(l, busybox) }}},
		config: v1.Config{
			Env: []string{searchPath}, WorkingDir: "/",
			Cmd: []string{"/bin/sh", "-c", "cat /etc/image; uname -r"},
		},
	}
}

// two is one with a layer that replaces, deletes and hides.
func (in Inputs) two(busybox []string) recipe {
	r := in.one(busybox)
	r.name = Two
	r.steps = append(r.steps, step{name: "changes", write: func(l *layer) error {
		return do(
			func() error { return l.file("etc/image", 0o644, "two\n") },
			func() error { return l.remove("srv/deleted") },
			func() error { return l.opaque("srv/hidden", 0o755) },
			func() error { return l.file("srv/hidden/new", 0o644, "upper\n") },
		)
	}})
	return r
}

// pause is one with another command.
func (in Inputs) pause(busybox []string) recipe {
	r := in.one(busybox)
	r.name = Pause
	r.config.Cmd = []string{"/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"}
	return r
}

// applets are the names of busybox that tests use.
var applets = strings.Fields(`sh cat cp cut date dd df dmesg echo env expr false find free grep head hostname id ip
	kill ln ls mkdir mkfifo mount mv od printf ps pwd readlink rm rmdir seq sed sha256sum sleep sort stat stty sync tail
	tee test timeout touch tr true umount uname uniq wc wget which xargs yes`)

func (in Inputs) busybox(l *layer, debs []string) error {
	if err := l.dir(".", 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "run", "srv", "sys", "tmp", "usr/local/bin", "var"} {
		if err := l.dir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, deb := range debs {
		if err := l.debProgram("bin/busybox", deb, busyboxFile); err != nil {
			return err
		}
	}
	for _, applet := range applets {
		if err := l.symlink("bin/"+applet, "busybox"); err != nil {
			return err
		}
	}
	return do(
		func() error { return l.program("usr/local/bin/tree-list", in.TreeList) },
		func() error { return l.file("etc/image", 0o644, "one\n") },
		func() error { return l.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n") },
		func() error { return l.file("etc/group", 0o644, "root:x:0:\n") },
		func() error { return l.file("srv/deleted", 0o644, "lower\n") },
		func() error { return l.file("srv/hidden/old", 0o644, "lower\n") },
		func() error { return l.stream("srv/noise", 0o644, 1<<20+1, noise(4)) },
	)
}

// program adds an executable of the host.
func (l *layer) program(name, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInput, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return l.stream(name, 0o755, info.Size(), file)
}

// debProgram adds one executable of a package.
func (l *layer) debProgram(name, deb, wanted string) error {
	file, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer file.Close()
	data, err := debData(bufio.NewReader(file))
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInput, deb, err)
	}
	archive := tar.NewReader(data)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %s has no %s", ErrInput, deb, wanted)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", deb, err)
		}
		if cleanName(h.Name) == wanted {
			return l.stream(name, 0o755, h.Size, archive)
		}
	}
}
