package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// step makes one layer.
type step struct {
	name string
	gzip bool
	// write fills the layer; the end of its archive is written for it.
	write func(*layer) error
}

// recipe makes one image.
type recipe struct {
	name   string
	steps  []step // lowest first
	config v1.Config
}

// build writes the layers into scratch, and the archive, through scratch, into
// out.
func (r recipe) build(out, scratch string) (Image, error) {
	result := Image{Name: r.name}
	g := newGround()
	var additions []mutate.Addendum
	var blobs []*blob
	for _, s := range r.steps {
		b, err := writeBlob(scratch, s, g)
		if err != nil {
			return Image{}, fmt.Errorf("layer %s: %w", s.name, err)
		}
		blobs = append(blobs, b)
		additions = append(additions, mutate.Addendum{
			Layer: b, MediaType: b.mediaType,
			History: v1.History{Created: v1.Time{Time: clock}, CreatedBy: s.name},
		})
		result.Layers = append(result.Layers, Layer{Name: s.name, Bytes: b.size, DiffID: b.diffID.String(), Gzip: s.gzip})
	}
	img, err := r.assemble(additions)
	if err != nil {
		return Image{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return Image{}, err
	}
	result.Digest = digest.String()

	temporary := filepath.Join(scratch, archiveName(r.name))
	result.Bytes, err = writeArchive(temporary, r.name, img, blobs)
	if err != nil {
		return Image{}, fmt.Errorf("write %s: %w", temporary, err)
	}
	return result, os.Rename(temporary, Archive(out, r.name))
}

// assemble is the image with its configuration and manifest.
func (r recipe) assemble(additions []mutate.Addendum) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(base, additions...)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Created = v1.Time{Time: clock}
	config.Config = r.config
	return mutate.ConfigFile(img, config)
}

// blob is a layer in a file, a v1.Layer.
type blob struct {
	path           string
	mediaType      types.MediaType
	digest, diffID v1.Hash
	size           int64
}

var _ v1.Layer = (*blob)(nil)

// errOnlyStored is the answer to who wants a layer unpacked: nothing here does.
var errOnlyStored = errors.New("a layer is read as it is stored")

func (b *blob) Digest() (v1.Hash, error)             { return b.digest, nil }
func (b *blob) DiffID() (v1.Hash, error)             { return b.diffID, nil }
func (b *blob) Size() (int64, error)                 { return b.size, nil }
func (b *blob) MediaType() (types.MediaType, error)  { return b.mediaType, nil }
func (b *blob) Compressed() (io.ReadCloser, error)   { return os.Open(b.path) }
func (b *blob) Uncompressed() (io.ReadCloser, error) { return nil, errOnlyStored }

// writeBlob makes the layer of a step, in a file below dir.
func writeBlob(dir string, s step, g *ground) (*blob, error) {
	file, err := os.CreateTemp(dir, "layer.*")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b := &blob{path: file.Name(), mediaType: types.OCIUncompressedLayer}
	stored := &counter{hash: sha256.New()}
	plain := sha256.New()

	out := nopCloser(io.MultiWriter(file, stored))
	if s.gzip {
		b.mediaType = types.OCILayer
		if out, err = gzip.NewWriterLevel(out, gzip.BestSpeed); err != nil {
			return nil, err
		}
	}
	l := newLayer(io.MultiWriter(out, plain), g)
	if err := s.write(l); err != nil {
		return nil, err
	}
	if err := errors.Join(l.tar.Close(), out.Close()); err != nil {
		return nil, err
	}
	b.digest, b.diffID, b.size = sum(stored.hash), sum(plain), stored.bytes
	return b, file.Close()
}

type nopWriteCloser struct{ io.Writer }

func (nopWriteCloser) Close() error { return nil }

func nopCloser(w io.Writer) io.WriteCloser { return nopWriteCloser{w} }

type counter struct {
	hash  hash.Hash
	bytes int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.bytes += int64(len(p))
	return c.hash.Write(p)
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// Annotations of the index by which containerd names an image that it imports
// (its core/images/annotations.go; OCI image-spec, annotations.md).
const (
	annotationName = "io.containerd.image.name"
	annotationTag  = "org.opencontainers.image.ref.name"
)

// writeArchive writes an OCI image layout as one tar file, and returns its
// length.
func writeArchive(path, name string, img v1.Image, blobs []*blob) (int64, error) {
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: img,
		Descriptor: v1.Descriptor{
			Platform:    &v1.Platform{OS: "linux", Architecture: "amd64"},
			Annotations: map[string]string{annotationName: name, annotationTag: "latest"},
		},
	})
	indexJSON, err := index.RawManifest()
	if err != nil {
		return 0, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return 0, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return 0, err
	}

	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	archive := newLayer(file, newGround())
	for _, part := range []struct{ name, content string }{
		{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`},
		{"index.json", string(indexJSON)},
		{blobName(sumOf(manifest)), string(manifest)},
		{blobName(sumOf(config)), string(config)},
	} {
		if err := archive.file(part.name, 0o644, part.content); err != nil {
			return 0, err
		}
	}
	written := map[v1.Hash]bool{}
	for _, b := range blobs {
		if written[b.digest] {
			continue
		}
		written[b.digest] = true
		if err := moveBlob(archive, b); err != nil {
			return 0, err
		}
	}
	if err := archive.tar.Close(); err != nil {
		return 0, err
	}
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), file.Close()
}

func sumOf(data []byte) v1.Hash {
	h := sha256.New()
	h.Write(data)
	return sum(h)
}

func blobName(digest v1.Hash) string { return "blobs/" + digest.Algorithm + "/" + digest.Hex }

// moveBlob copies a layer into the archive and removes its file.
func moveBlob(archive *layer, b *blob) error {
	content, err := os.Open(b.path)
	if err != nil {
		return err
	}
	defer content.Close()
	if err := archive.stream(blobName(b.digest), 0o644, b.size, content); err != nil {
		return err
	}
	return os.Remove(b.path)
}
