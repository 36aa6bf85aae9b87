package registry

import (
	"archive/tar"
	"bytes"
	"io"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// entry is one thing in a layer.
type entry struct {
	header tar.Header
	text   string
}

// nextLayer begins another layer.
var nextLayer entry

func file(name, text string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}, text}
}

func dir(name string) entry {
	return entry{header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}}
}

func link(name, to string) entry {
	return entry{header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}}
}

func (e entry) mode(mode int64) entry {
	e.header.Mode = mode
	return e
}

func (e entry) by(uid, gid int) entry {
	e.header.Uid, e.header.Gid = uid, gid
	return e
}

func splitLayers(entries []entry) ([]v1.Layer, error) {
	var layers []v1.Layer
	var some []entry
	for i, e := range entries {
		if e.header.Name != "" {
			some = append(some, e)
		}
		if e.header.Name == "" || i == len(entries)-1 {
			one, err := layer(some...)
			if err != nil {
				return nil, err
			}
			layers, some = append(layers, one), nil
		}
	}
	return layers, nil
}

// layer makes a layer, with the directories on the way to each entry.
func layer(entries ...entry) (v1.Layer, error) {
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	listed := map[string]bool{".": true}
	for _, e := range entries {
		name := strings.TrimSuffix(e.header.Name, "/")
		for _, parent := range parents(name) {
			if !listed[parent] {
				listed[parent] = true
				below := dir(parent)
				if err := w.WriteHeader(&below.header); err != nil {
					return nil, err
				}
			}
		}
		listed[name] = true
		if err := w.WriteHeader(&e.header); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// parents are the directories on the way to a name, from the top.
func parents(name string) []string {
	var all []string
	for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
		all = append([]string{parent}, all...)
	}
	return all
}
