package layers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/google/uuid"
)

// Maker makes images below Dir.
type Maker struct {
	Mkfs string // path of mkfs.erofs
	Dir  string // there already, absolute
}

// Plain makes an EROFS filesystem of a layer's tar, with the options of
// containerd's differ (internal/erofsutils), and returns its path.
func (m Maker) Plain(ctx context.Context, name string, tar []byte) (string, error) {
	return m.fromTar(ctx, name, tar, "--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096")
}

// TarIndex makes an index of a layer's tar, with the tar behind it, as the
// differ does with enable_tar_index, and returns its path.
func (m Maker) TarIndex(ctx context.Context, name string, tar []byte) (string, error) {
	path, err := m.fromTar(ctx, name, tar, "--tar=i", "--aufs", "--quiet", "-b4096")
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	_, err = f.Write(tar)
	return path, errors.Join(err, f.Close())
}

func (m Maker) fromTar(ctx context.Context, name string, tar []byte, options ...string) (string, error) {
	path := filepath.Join(m.Dir, name)
	id := uuid.NewSHA1(uuid.NameSpaceURL, fmt.Appendf(nil, "erofs:blobs/sha256:%x", sha256.Sum256(tar)))
	// Same bytes, same layer: containerd's documentation recommends these two.
	options = append(options, "-T0", "--mkfs-time", "-U", id.String(), path)
	cmd := exec.CommandContext(ctx, m.Mkfs, options...)
	cmd.Stdin = bytes.NewReader(tar)
	return path, run(cmd)
}

// Index makes an fsmeta of layers, the oldest first, and returns its path.
func (m Maker) Index(ctx context.Context, name string, layers ...string) (string, error) {
	path := filepath.Join(m.Dir, name)
	return path, run(exec.CommandContext(ctx, m.Mkfs, append([]string{"--aufs", "--ovlfs-strip=1", "--quiet", path}, layers...)...))
}

// Writable makes a sparse ext4 image of size bytes, as containerd's mount
// manager does (core/mount/manager/mkfs.go), but with the files of a directory
// in it, unless that is "", and returns its path.
func (m Maker) Writable(ctx context.Context, name string, size int64, from string) (string, error) {
	path := filepath.Join(m.Dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return "", err
	}
	options := []string{"-q"}
	if from != "" {
		options = append(options, "-d", from)
	}
	return path, run(exec.CommandContext(ctx, "mkfs.ext4", append(options, path)...))
}

// Copies copies files to dir/<name> each and returns the new paths.
func Copies(dir string, files ...string) ([]string, error) {
	var copies []string
	for _, file := range files {
		to := filepath.Join(dir, filepath.Base(file))
		data, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(to, data, 0o644)
		}
		if err != nil {
			return nil, err
		}
		copies = append(copies, to)
	}
	return copies, nil
}

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, bytes.TrimSpace(out))
	}
	return nil
}

// reversed is the list with the newest first.
func reversed[T any](list []T) []T {
	list = slices.Clone(list)
	slices.Reverse(list)
	return list
}
