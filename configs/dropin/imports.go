package dropin

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// maxFiles bounds how many files of a configuration are looked at.
const maxFiles = 1000

// Existing is what an administrator's configuration says to somebody who wants to
// add a file to it.
type Existing struct {
	// Found is whether there is a main file at all. Without one containerd
	// imports nothing, not even from the folder that its default configuration
	// names (cmd/containerd/command/main.go): then somebody has to write one.
	Found bool
	// Imported is whether the file that is asked for is imported, or would be.
	Imported bool
	// Versions are those of all files, ascending, each once, but for the file
	// that is asked for.
	Versions []int
	// Unpacks are the snapshotters for which they say how images are unpacked
	// (unpack_config of the transfer service), nil if they leave that to
	// containerd.
	Unpacks []string
}

// Files is a file system by absolute paths.
type Files interface {
	// ReadFile returns fs.ErrNotExist for a file that is not there.
	ReadFile(path string) ([]byte, error)
	// Glob returns the paths that a pattern matches.
	Glob(pattern string) ([]string, error)
}

// Look reads the main file of containerd's configuration, and what it imports as
// containerd does (resolveImports in cmd/containerd/server/config), and says
// whether file would be imported.
func Look(files Files, main, file string) (Existing, error) {
	var e Existing
	seen := map[string]bool{}
	for pending := []string{main}; len(pending) > 0; {
		at := pending[0]
		pending = pending[1:]
		if seen[at] || at == file {
			continue
		}
		seen[at] = true
		if len(seen) > maxFiles {
			return e, fmt.Errorf("%s imports more than %d files", main, maxFiles)
		}
		data, err := files.ReadFile(at)
		if errors.Is(err, fs.ErrNotExist) && at == main {
			return e, nil
		}
		if err != nil {
			return e, fmt.Errorf("configuration of containerd: %w", err)
		}
		e.Found = true
		var head struct {
			Version int      `toml:"version"`
			Imports []string `toml:"imports"`
			Plugins struct {
				Transfer struct {
					Unpacks []struct {
						Snapshotter string `toml:"snapshotter"`
					} `toml:"unpack_config"`
				} `toml:"io.containerd.transfer.v1.local"`
			} `toml:"plugins"`
		}
		if err := toml.Unmarshal(data, &head); err != nil {
			return e, fmt.Errorf("configuration of containerd: %s: %w", at, err)
		}
		if !slices.Contains(e.Versions, head.Version) {
			e.Versions = append(e.Versions, head.Version)
			slices.Sort(e.Versions)
		}
		for _, u := range head.Plugins.Transfer.Unpacks {
			e.Unpacks = append(e.Unpacks, u.Snapshotter)
		}
		for _, pattern := range head.Imports {
			pattern = path.Clean(pattern)
			if !path.IsAbs(pattern) {
				pattern = path.Join(path.Dir(at), pattern)
			}
			if !strings.Contains(pattern, "*") {
				e.Imported = e.Imported || pattern == file
				pending = append(pending, pattern)
				continue
			}
			if ok, err := path.Match(pattern, file); ok && err == nil {
				e.Imported = true
			}
			found, err := files.Glob(pattern)
			if err != nil {
				return e, fmt.Errorf("configuration of containerd: %s imports %q: %w", at, pattern, err)
			}
			pending = append(pending, found...)
		}
	}
	return e, nil
}
