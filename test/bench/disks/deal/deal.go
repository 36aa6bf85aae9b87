// Package deal deals the files of one archive out over many layers, so that the
// same tree can be had of one layer and of many.
//
// It owns nothing, reads and writes archives in memory only, and starts no
// goroutine. Its functions may be called from any goroutine.
package deal

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// entry is one path of the archive.
type entry struct {
	header  tar.Header
	content []byte
}

// Tar deals an archive out over n layers and returns their archives, the lowest
// first. The order is kept: each layer has the next run of files, as packages
// have that are installed one after the other, so that most layers share the
// directories further up. Every directory on the way to a file is listed with
// the mode and owner that it has in the archive; a hard link is where its file
// is.
func Tar(archive io.Reader, n int) ([][]byte, error) {
	entries, err := read(archive)
	if err != nil {
		return nil, err
	}
	if n < 1 || len(entries) < n {
		return nil, fmt.Errorf("%d paths cannot be dealt out over %d layers", len(entries), n)
	}
	dirs := map[string]*entry{}
	for i := range entries {
		if e := &entries[i]; e.header.Typeflag == tar.TypeDir {
			dirs[clean(e.header.Name)] = e
		}
	}
	layers := make([]*layer, n)
	for i := range layers {
		layers[i] = newLayer(dirs)
		if err := layers[i].dir("."); err != nil {
			return nil, err
		}
	}
	home := map[string]*layer{} // of regular files
	for i := range entries {
		e := &entries[i]
		name := clean(e.header.Name)
		to := layers[i*n/len(entries)]
		switch e.header.Typeflag {
		case tar.TypeReg:
			home[name] = to
		case tar.TypeLink:
			if to = home[clean(e.header.Linkname)]; to == nil {
				return nil, fmt.Errorf("hard link %q: its file %q does not stand before it", name, e.header.Linkname)
			}
		}
		if err := to.put(name, e); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
	}
	return closeAll(layers)
}

func read(archive io.Reader) ([]entry, error) {
	var entries []entry
	for in := tar.NewReader(archive); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the archive: %w", err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			return nil, fmt.Errorf("read %q of the archive: %w", h.Name, err)
		}
		entries = append(entries, entry{*h, content})
	}
}

func closeAll(layers []*layer) ([][]byte, error) {
	tars := make([][]byte, len(layers))
	for i, l := range layers {
		if err := l.tar.Close(); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		tars[i] = l.out.Bytes()
	}
	return tars, nil
}

// layer writes the archive of one layer.
type layer struct {
	out    bytes.Buffer
	tar    *tar.Writer
	dirs   map[string]*entry // all that there are
	listed map[string]bool   // directories of this layer
}

func newLayer(dirs map[string]*entry) *layer {
	l := &layer{dirs: dirs, listed: map[string]bool{}}
	l.tar = tar.NewWriter(&l.out)
	return l
}

// put writes an entry after the directories on its way.
func (l *layer) put(name string, e *entry) error {
	if e.header.Typeflag == tar.TypeDir {
		return l.dir(name)
	}
	if err := l.dir(path.Dir(name)); err != nil {
		return err
	}
	return l.write(e)
}

// dir lists a directory and those on its way, each once.
func (l *layer) dir(name string) error {
	if l.listed[name] {
		return nil
	}
	l.listed[name] = true
	if name != "." {
		if err := l.dir(path.Dir(name)); err != nil {
			return err
		}
	}
	e := l.dirs[name]
	if e == nil {
		return fmt.Errorf("the archive does not list directory %q", name)
	}
	return l.write(e)
}

func (l *layer) write(e *entry) error {
	if err := l.tar.WriteHeader(&e.header); err != nil {
		return err
	}
	_, err := l.tar.Write(e.content)
	return err
}

// clean makes "./a/b/" to "a/b", and the root to ".".
func clean(name string) string {
	if name = strings.Trim(path.Join("/", name), "/"); name == "" {
		return "."
	}
	return name
}
