package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/erofsvm/erofsvm/configs"
)

// Uninstall takes away what the manifest names, containerd's drop-in first, and the
// directories that were made for it if they are empty. What somebody has changed
// stays, and stays in the manifest, unless force is given. While VMs run it does
// nothing, unless force is given: who is to end them would be gone.
func (i *Installer) Uninstall(force, dryRun bool) (result Result, err error) {
	unlock, err := i.lock(dryRun)
	if err != nil {
		return result, err
	}
	defer unlock()
	had, err := i.readManifest()
	if err != nil {
		return result, err
	}
	running, err := i.sandboxes()
	switch {
	case err != nil:
		return result, err
	case running > 0 && !force:
		return result, fmt.Errorf("%d virtual machines run on this host: end them, or use --force", running)
	}
	left := manifest{Version: manifestVersion, Dirs: had.Dirs}
	var steps []step
	for _, e := range slices.Backward(had.Files) {
		s, err := i.decideGone(e, force)
		if err != nil {
			return result, err
		}
		switch s.Action {
		case Removed:
			result.Restart = result.Restart || e.Containerd
		case Kept:
			left.Files = append(left.Files, e)
		default:
			continue // it is gone already
		}
		steps = append(steps, s)
	}
	slices.Reverse(left.Files)
	for _, s := range steps {
		if dryRun {
			i.say(s.Change)
		} else if err := i.do(s); err != nil {
			return result, err
		}
	}
	if dryRun {
		return result, nil
	}
	return result, i.sweep(left)
}

// sweep removes what is left of an installation: the manifest last, or, if there is
// something that was kept, nothing but empty directories.
func (i *Installer) sweep(left manifest) error {
	if len(left.Files) > 0 {
		return i.writeManifest(left)
	}
	if err := i.remove(manifestFile); err != nil {
		return err
	}
	if err := i.remove(lockFile); err != nil {
		return err
	}
	dirs := append([]string{manifestDir}, left.Dirs...)
	for _, dir := range slices.Backward(dirs) {
		if err := i.removeDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// sandboxes counts the VMs of the host, by their directories.
func (i *Installer) sandboxes() (int, error) {
	c := configs.Default()
	data, err := i.root.ReadFile(configs.DefaultPath)
	if err == nil {
		// One that is broken is about to go; its VMs are where they usually are.
		if own, err := configs.Parse(configs.DefaultPath, data); err == nil {
			c = own
		}
	}
	real, err := i.root.Real(c.StateDir)
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir(real)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return len(entries), err
}
