package harness

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// in adds the namespace to a context.
func (c *Containerd) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, c.namespace())
}

// Context adds Namespace to a context for calls of Client's services.
func (c *Containerd) Context(ctx context.Context) context.Context { return c.in(ctx) }

// Import reads an OCI archive and unpacks its images with each of the
// snapshotters. It returns the images' names. What is there already is neither
// read nor unpacked again.
func (c *Containerd) Import(ctx context.Context, archive string, snapshotters ...string) ([]string, error) {
	ctx = c.in(ctx)
	f, err := os.Open(archive)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer f.Close()
	if names, err := c.present(ctx, f, snapshotters); err != nil || names != nil {
		return names, err
	}
	imported, err := c.client.Import(ctx, f, client.WithImportPlatform(platforms.Default()))
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", archive, err)
	}
	var names []string
	for _, meta := range imported {
		image := client.NewImageWithPlatform(c.client, meta, platforms.Default())
		for _, snapshotter := range snapshotters {
			if err := image.Unpack(ctx, snapshotter); err != nil {
				return nil, fmt.Errorf("unpack %s for %s: %w", meta.Name, snapshotter, err)
			}
		}
		names = append(names, meta.Name)
	}
	return names, nil
}

// present returns the names of an archive's images if all of them are in
// containerd, unpacked. It leaves the archive at its start.
func (c *Containerd) present(ctx context.Context, archive *os.File, snapshotters []string) ([]string, error) {
	index, err := readIndex(archive)
	if _, seekErr := archive.Seek(0, io.SeekStart); err != nil || seekErr != nil || index == nil {
		return nil, errors.Join(err, seekErr)
	}
	var names []string
	for _, manifest := range index.Manifests {
		name := manifest.Annotations[images.AnnotationImageName]
		image, err := c.client.GetImage(ctx, name)
		if errdefs.IsNotFound(err) || err == nil && image.Target().Digest != manifest.Digest {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("look for image %q: %w", name, err)
		}
		for _, snapshotter := range snapshotters {
			if there, err := image.IsUnpacked(ctx, snapshotter); err != nil || !there {
				return nil, err
			}
		}
		names = append(names, name)
	}
	return names, nil
}

// readIndex reads index.json of an OCI archive, nil if there is none. tar skips
// over what is before it without reading.
func readIndex(archive *os.File) (*ocispec.Index, error) {
	files := tar.NewReader(archive)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", archive.Name(), err)
		}
		if header.Name != ocispec.ImageIndexFile {
			continue
		}
		var index ocispec.Index
		if err := json.NewDecoder(io.LimitReader(files, 1<<20)).Decode(&index); err != nil {
			return nil, fmt.Errorf("read %s: %w", archive.Name(), err)
		}
		return &index, nil
	}
}

// RemoveContainers kills and removes every container in Namespace, with its
// task and its snapshot.
func (c *Containerd) RemoveContainers(ctx context.Context) error {
	ctx = c.in(ctx)
	list, err := c.client.Containers(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	var errs []error
	for _, one := range list {
		task, err := one.Task(ctx, nil)
		if err == nil {
			_, err = task.Delete(ctx, client.WithProcessKill)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("end %s: %w", one.ID(), err))
		}
		if err := one.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove %s: %w", one.ID(), err))
		}
	}
	return errors.Join(errs...)
}
