package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Where the manifest lies, on the host.
const (
	manifestDir  = "/var/lib/erofsvm"
	manifestFile = manifestDir + "/installed.json"
	lockFile     = manifestDir + "/lock"
)

const manifestVersion = 1

// manifest says which files are ours. While files are being replaced it has the
// sums of both, so that a run that was interrupted leaves nothing of which nobody
// knows whose it is.
type manifest struct {
	Version int      `json:"version"`
	Files   []entry  `json:"files"` // in the order in which they were written
	Dirs    []string `json:"dirs"`  // that were made, the outermost first
	// Pending is whether containerd has not taken all of it yet.
	Pending bool `json:"restart_pending,omitempty"`
}

type entry struct {
	Path   string   `json:"path"`
	SHA256 []string `json:"sha256"`
	// Containerd reads the file when it starts.
	Containerd bool `json:"containerd,omitempty"`
}

func (m manifest) find(name string) (entry, bool) {
	i := slices.IndexFunc(m.Files, func(e entry) bool { return e.Path == name })
	if i < 0 {
		return entry{}, false
	}
	return m.Files[i], true
}

// readManifest returns an empty one where nothing is installed.
func (i *Installer) readManifest() (manifest, error) {
	data, err := i.root.ReadFile(manifestFile)
	if errors.Is(err, fs.ErrNotExist) {
		return manifest{Version: manifestVersion}, nil
	}
	if err != nil {
		return manifest{}, err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return manifest{}, fmt.Errorf("%s: %w", manifestFile, err)
	}
	if m.Version != manifestVersion {
		return manifest{}, fmt.Errorf("%s is of version %d, and this program knows %d: use the program that wrote it", manifestFile, m.Version, manifestVersion)
	}
	names := slices.Clone(m.Dirs)
	for _, e := range m.Files {
		names = append(names, e.Path)
	}
	for _, name := range names {
		if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
			return manifest{}, fmt.Errorf("%s: %q is no path", manifestFile, name)
		}
	}
	return m, nil
}

func (i *Installer) writeManifest(m manifest) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return i.write(manifestFile, 0o644, fromText(append(data, '\n')))
}

// Restarted notes that containerd has taken what was installed, or that somebody
// was told to see to it.
func (i *Installer) Restarted() error {
	unlock, err := i.lock(false)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := i.readManifest()
	if err != nil || !m.Pending {
		return err
	}
	m.Pending = false
	return i.writeManifest(m)
}

// lock keeps others away until unlock. Who only looks takes no lock: it would make
// a directory.
func (i *Installer) lock(look bool) (unlock func(), err error) {
	if look {
		return func() {}, nil
	}
	dirs, err := i.missingDirs(lockFile)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		if err := i.makeDir(dir); err != nil {
			return nil, err
		}
	}
	real, err := i.root.Real(lockFile)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Clean(real), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another erofsvm is at work on this host (%s): %w", lockFile, err)
	}
	return func() { f.Close() }, nil
}
