package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Hosts are the registries whose images the tests pull.
var Hosts = []string{"ghcr.io", "registry.k8s.io"}

type mediaType = types.MediaType

// platforms are those for which an image is there. Only the first one's is run;
// the others' are the same but for a layer, so that each has content of its own.
var platforms = []v1.Platform{
	{OS: "linux", Architecture: "amd64"},
	{OS: "linux", Architecture: "arm64", Variant: "v8"},
	{OS: "linux", Architecture: "s390x"},
	{OS: "linux", Architecture: "ppc64le"},
}

// netcat ends on SIGTERM although it is process 1, as the nc of busybox does where
// it is built with NC_110_COMPAT, which Debian's is not.
const netcat = "#!/bin/sh\ntrap 'exit 143' TERM\n/bin/busybox nc \"$@\" &\nwait $!\n"

// Images makes all images of the tests, by name, from the OCI archive of an image
// of busybox.
func Images(archive string) (map[string]v1.ImageIndex, error) {
	busybox, err := firstLayer(archive)
	if err != nil {
		return nil, err
	}
	accounts, err := layer(
		file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"+
			"bin:x:2:2:bin:/bin:/bin/false\nsys:x:3:3:sys:/dev:/bin/false\nsync:x:4:100:sync:/bin:/bin/sync\n"+
			"www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"),
		file("etc/group", "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nusers:x:100:\nwww-data:x:33:\nnogroup:x:65534:\n"),
		link("bin/top", "busybox"), link("bin/vi", "busybox"), file("bin/nc", netcat).mode(0o755), link("bin/id", "busybox"),
		link("bin/su", "busybox"), link("bin/chmod", "busybox"), link("bin/chown", "busybox"), link("bin/tty", "busybox"),
		link("bin/killall", "busybox"), link("bin/httpd", "busybox"), link("bin/ping", "busybox"), link("bin/rev", "busybox"),
	)
	if err != nil {
		return nil, err
	}
	layers := []v1.Layer{busybox, accounts}
	made := map[string]v1.ImageIndex{}
	for _, recipe := range []struct {
		names   []string
		entries []entry
	}{
		{names: []string{"ghcr.io/containerd/busybox:1.36", "registry.k8s.io/e2e-test-images/busybox:1.29-2"}},
		{
			names:   []string{"ghcr.io/containerd/volume-copy-up:2.2"},
			entries: []entry{dir("test_dir"), file("test_dir/test_file", "test_content\n")},
		},
		{
			names:   []string{"ghcr.io/containerd/volume-ownership:2.1"},
			entries: []entry{dir("test_dir").by(65534, 65534), dir("usr/bin"), link("usr/bin/passwd", "/bin/busybox"), file("bin/suid", "").mode(0o4755)},
		},
		{
			names: []string{"ghcr.io/containerd/whiteout-test:1.0"},
			entries: []entry{
				file("file-to-delete", "lower\n"), dir("dir-to-delete"), file("dir-to-delete/file", "lower\n"),
				nextLayer, file(".wh.file-to-delete", ""), file(".wh.dir-to-delete", ""),
			},
		},
	} {
		more, err := splitLayers(recipe.entries)
		if err != nil {
			return nil, err
		}
		index, err := indexOf(recipe.names[0], slices.Concat(layers, more))
		if err != nil {
			return nil, err
		}
		for _, name := range recipe.names {
			made[name] = index
		}
	}
	return made, errors.Join(addPauses(made), addForeign(made))
}

// addPauses adds those images of which the tests only count what lies where.
// Each has a layer of its own, since the tests delete content.
func addPauses(made map[string]v1.ImageIndex) error {
	for _, name := range []string{"registry.k8s.io/pause:3.10.2", "registry.k8s.io/pause:3.10.1", "registry.k8s.io/pause:3.6"} {
		one, err := layer(file("pause", "of "+name+"\n").mode(0o755))
		if err != nil {
			return err
		}
		if made[name], err = indexOf(name, []v1.Layer{one}); err != nil {
			return err
		}
	}
	return nil
}

// addForeign adds an image that is for another system, whose layers no
// snapshotter of Linux unpacks.
func addForeign(made map[string]v1.ImageIndex) error {
	image, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte("not for Linux"), types.DockerForeignLayer))
	if err != nil {
		return err
	}
	platform := v1.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.17763.1"}
	made["ghcr.io/containerd/windows/nanoserver:1809"] = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: image, Descriptor: v1.Descriptor{Platform: &platform},
	})
	return nil
}

// indexOf is an image of the layers for each platform. What a platform has of its
// own no other image has: tests look for content that was not pulled.
func indexOf(name string, layers []v1.Layer) (v1.ImageIndex, error) {
	var index v1.ImageIndex = empty.Index
	for _, platform := range platforms {
		image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
			OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant,
			Config: v1.Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"sh"}},
		})
		if err != nil {
			return nil, err
		}
		own, err := layer(file("etc/platform", platform.String()+" of "+name+"\n"))
		if err != nil {
			return nil, err
		}
		if image, err = mutate.AppendLayers(image, append(slices.Clone(layers), own)...); err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: mutate.MediaType(image, types.OCIManifestSchema1), Descriptor: v1.Descriptor{Platform: &platform},
		})
	}
	return index, nil
}

// firstLayer is the lowest layer of the first image of an OCI archive.
func firstLayer(archive string) (v1.Layer, error) {
	blobs, err := readArchive(archive)
	if err != nil {
		return nil, fmt.Errorf("%s (make images): %w", archive, err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(blobs["index.json"], &index); err != nil || len(index.Manifests) == 0 {
		return nil, fmt.Errorf("%s has no image: %w", archive, err)
	}
	blob := func(h v1.Hash) []byte { return blobs[path.Join("blobs", h.Algorithm, h.Hex)] }
	var manifest v1.Manifest
	if err := json.Unmarshal(blob(index.Manifests[0].Digest), &manifest); err != nil || len(manifest.Layers) == 0 {
		return nil, fmt.Errorf("%s has no layer: %w", archive, err)
	}
	content := blob(manifest.Layers[0].Digest)
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// maxArchive bounds the archive, in bytes.
const maxArchive = 256 << 20

func readArchive(archive string) (map[string][]byte, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blobs := map[string][]byte{}
	for files := tar.NewReader(io.LimitReader(f, maxArchive)); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return blobs, nil
		}
		if err != nil {
			return nil, err
		}
		if blobs[path.Clean(header.Name)], err = io.ReadAll(files); err != nil {
			return nil, err
		}
	}
}
