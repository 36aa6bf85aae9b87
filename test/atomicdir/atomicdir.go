// Package atomicdir replaces the content of a directory as a kubelet does for
// configmaps, secrets, projected volumes and the downward API, step by step
// (AtomicWriter.Write in pkg/volume/util/atomic_writer.go of Kubernetes): containers
// see all of the old content or all of the new.
//
// It keeps nothing and starts no goroutine; one caller at a time may write to a
// directory.
package atomicdir

import (
	"os"
	"path/filepath"
	"strings"
)

const (
	dataLink = "..data"
	newLink  = "..data_tmp"
)

// Write makes payload, content by path, that of dir.
func Write(dir string, payload map[string]string) error {
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	content, err := os.MkdirTemp(dir, "..2026_11_26_00_00_00.")
	if err != nil {
		return err
	}
	if err := os.Chmod(content, 0o755); err != nil {
		return err
	}
	for name, text := range payload {
		path := filepath.Join(content, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Symlink(filepath.Base(content), filepath.Join(dir, newLink)); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, newLink), filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	if err := showNames(dir, payload); err != nil || old == "" {
		return err
	}
	if err := hideNames(dir, payload); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, old))
}

// showNames makes the links that containers use.
func showNames(dir string, payload map[string]string) error {
	for name := range payload {
		first, _, _ := strings.Cut(name, "/")
		err := os.Symlink(filepath.Join(dataLink, first), filepath.Join(dir, first))
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// hideNames removes the links that lead nowhere now.
func hideNames(dir string, payload map[string]string) error {
	shown := map[string]bool{}
	for name := range payload {
		first, _, _ := strings.Cut(name, "/")
		shown[first] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") || shown[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
