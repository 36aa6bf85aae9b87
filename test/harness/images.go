package harness

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
)

// in adds the namespace to a context.
func (c *Containerd) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, Namespace)
}

// Context adds Namespace to a context for calls of Client's services.
func (c *Containerd) Context(ctx context.Context) context.Context { return c.in(ctx) }

// Import reads an OCI archive and unpacks its images with each of the
// snapshotters. It returns the images' names. Importing again is cheap.
func (c *Containerd) Import(ctx context.Context, archive string, snapshotters ...string) ([]string, error) {
	ctx = c.in(ctx)
	f, err := os.Open(archive)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer f.Close()
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
